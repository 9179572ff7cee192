# SPDX-License-Identifier: Apache-2.0
"""`suspend`, `resume`, `cancel` and `retry`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kinema_cli.commands import options as o


def _steer(
    action: str,
    names: list[str],
    where: tuple[Path | None, str | None, str | None],
    output: o.Output,
    *,
    stage: str | None = None,
    follow: bool = False,
) -> None:
    from kinema_api.names import Stage
    from kinema_cli.cluster import Where
    from kinema_cli.steer import steer
    from kinema_kube.actions import Action

    found = o.stage_of(stage)
    chosen = None if found is None else Stage(found)
    code = steer(Where(*where), Action(action), names, stage=chosen, follow=follow, output=output)
    raise typer.Exit(code)


def suspend(
    names: o.Names,
    output: o.OutputFormat = o.Output.TEXT,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Pause jobs: what runs saves and stops, and gives its nodes back."""
    _steer("suspend", names, (kubeconfig, context, namespace), output)


def resume(
    names: o.Names,
    output: o.OutputFormat = o.Output.TEXT,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Let suspended jobs go on from their last complete checkpoint."""
    _steer("resume", names, (kubeconfig, context, namespace), output)


def cancel(
    names: o.Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: o.OutputFormat = o.Output.TEXT,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """End jobs for good; what they published stays. On a terminal it asks first."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"End {', '.join(names)} for good?", abort=True, err=True)
    _steer("cancel", names, (kubeconfig, context, namespace), output)


def retry(
    names: o.Names,
    stage: o.StageName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
    output: o.OutputFormat = o.Output.TEXT,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Run jobs that have ended again, from the stage that failed or from --stage on."""
    _steer("retry", names, (kubeconfig, context, namespace), output, stage=stage, follow=follow)
