# SPDX-License-Identifier: Apache-2.0
"""`doctor`, `report` and `completion`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kinema_cli.commands import options as o


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings count as failures.")] = False,
    rights: Annotated[bool, typer.Option("--rights/--no-rights", help="See what you may do, too.")] = True,
    system: o.SystemNamespace = o.SYSTEM_NAMESPACE,
    output: o.OutputFormat = o.Output.TEXT,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """See whether the installation is sound, a line a check; 1 when it is not."""
    from kinema_cli.cluster import Where
    from kinema_cli.doctor import doctor as run

    where = Where(kubeconfig, context, namespace)
    raise typer.Exit(run(where, system=system, output=output, strict=strict, rights=rights))


def report(
    name: Annotated[str | None, typer.Argument(metavar="JOB", help="A job; the installation alone otherwise.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Where to write; into this folder otherwise.")] = None,
    system: o.SystemNamespace = o.SYSTEM_NAMESPACE,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Write a zip for support: the job, its events, pods and logs, the installation; no secrets."""
    from kinema_cli.cluster import Where
    from kinema_cli.report import report as run

    raise typer.Exit(run(Where(kubeconfig, context, namespace), name, file=file, system=system))


SHELLS = ("bash", "zsh", "fish", "powershell")


def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", help=f"One of {', '.join(SHELLS)}.")]) -> None:
    """Print what lets a shell complete commands, options, stages and names of jobs.

    For bash: source <(kinema completion bash)
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    from kinema_cli.errors import CommandError

    if shell not in SHELLS:
        raise CommandError(f"there is no completion for {shell}; write one of {', '.join(SHELLS)}")
    typer.echo(get_completion_script(prog_name="kinema", complete_var=o.COMPLETE, shell=shell))
