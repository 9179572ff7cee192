# SPDX-License-Identifier: Apache-2.0
"""`submit`, `list` and `get`."""

from __future__ import annotations

from typing import Annotated

import typer

from kinema_cli.commands import options as o


def submit(
    file: o.JobFile,
    name: Annotated[str | None, typer.Option("--name", help="Another name than the file's.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Let the API server check it; nothing is created.")
    ] = False,
    output: o.OutputFormat = o.Output.TEXT,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Create a job from a file."""
    from kinema_cli.cluster import Where
    from kinema_cli.submit import submit as run

    where = Where(kubeconfig, context, namespace)
    raise typer.Exit(run(where, file, name=name, follow_it=follow, dry_run=dry_run, output=output))


def list_jobs(
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of all namespaces.")] = False,
    phase: Annotated[str | None, typer.Option(help="Only jobs of this phase, for instance Running.")] = None,
    selector: o.Selector = "",
    output: o.OutputFormat = o.Output.TEXT,
    watch: o.Watch = False,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Show jobs."""
    from kinema_cli.cluster import Where
    from kinema_cli.show import Query, show_list

    where = Where(kubeconfig, context, namespace)
    query = Query(None if everywhere else where.namespace, phase=phase, labels=selector, output=output)
    raise typer.Exit(show_list(where, query, watch=watch))


def get(
    name: o.Name,
    output: o.OutputFormat = o.Output.TEXT,
    watch: o.Watch = False,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Show a job: its stages, their attempts and progress."""
    from kinema_cli.cluster import Where
    from kinema_cli.show import show_one

    raise typer.Exit(show_one(Where(kubeconfig, context, namespace), name, output=output, watch=watch))


def why(
    name: o.Name,
    output: o.OutputFormat = o.Output.TEXT,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Say why a job stands where it stands, and what to do."""
    from kinema_cli.cluster import Where
    from kinema_cli.why import explain

    raise typer.Exit(explain(Where(kubeconfig, context, namespace), name, output=output))
