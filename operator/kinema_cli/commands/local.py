# SPDX-License-Identifier: Apache-2.0
"""`run --local` and `gc`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kinema_cli.commands import options as o

ACCELERATORS = ("nvidia", "ascend", "cpu")
_State = Annotated[Path | None, typer.Option(help="Where configs and logs of local jobs go (~/.local/state/kinema).")]
_Python = Annotated[str, typer.Option(help="The interpreter that has Kinema's stages.", show_default=False)]


def _accelerator(name: str | None) -> str | None:
    if name is not None and name not in ACCELERATORS:
        raise typer.BadParameter(f"write one of {', '.join(ACCELERATORS)}")
    return name


def run(
    file: Annotated[Path, typer.Argument(help="The job file, as kubectl applies it.")],
    local: Annotated[bool, typer.Option("--local", help="Run its stages as processes of this machine.")] = False,
    volume: Annotated[list[str] | None, typer.Option(help="CLAIM=/folder: where pvc://CLAIM lies here.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="NAME=/folder: a Secret as files, one a key.")] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(callback=_accelerator, help="nvidia, ascend or cpu: what to compute on; found when left out."),
    ] = None,
    devices: Annotated[int | None, typer.Option(min=1, max=64, help="Training processes, one a device.")] = None,
    stage: Annotated[str | None, typer.Option(help="Run only this stage (after check).")] = None,
    first: Annotated[str | None, typer.Option("--from", help="Run from this stage on (after check).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and start nothing.")] = False,
    progress: Annotated[bool, typer.Option(help="Live lines on a terminal.")] = True,
    state: _State = None,
    scratch: Annotated[Path | None, typer.Option(help="Local space to stage s3:// and hf:// in.")] = None,
    python: _Python = sys.executable,
) -> None:
    """Run a job on this machine; again, it goes on."""
    from kinema_api.names import Stage
    from kinema_api.pool import Accelerator
    from kinema_cli.errors import CommandError
    from kinema_cli.here import Options, run_here

    if not local:
        raise CommandError(f"to run it in a cluster: kinema submit {file} (or kubectl apply -f {file}); here: --local")
    only, start = o.stage_of(stage, option="--stage"), o.stage_of(first, option="--from")
    options = Options(
        volumes=tuple(volume or ()),
        secrets=tuple(secret or ()),
        accelerator=None if accelerator is None else Accelerator(accelerator),
        devices=devices,
        only=None if only is None else Stage(only),
        first=None if start is None else Stage(start),
        dry_run=dry_run,
        live=progress,
        state=state,
        scratch=scratch,
        python=python,
    )
    raise typer.Exit(run_here(file, options))


def gc(
    storage: Annotated[str, typer.Option(help="The workspace: pvc://CLAIM/PATH, or file:///folder with --local.")],
    local: Annotated[bool, typer.Option("--local", help="A folder here; local jobs protect theirs.")] = False,
    min_age: Annotated[float, typer.Option(min=0, help="Hours since the last write under which a folder stays.")] = 24,
    runs: Annotated[bool, typer.Option("--runs", help="Free private folders of jobs that are gone, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    image: Annotated[str | None, typer.Option(help="The light stage image; a job's own when left out.")] = None,
    state: _State = None,
    python: _Python = sys.executable,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Free artifacts that no job refers to."""
    from kinema_cli.here import Garbage, collect

    where = None
    if not local:
        from kinema_cli.cluster import Where

        where = Where(kubeconfig, context, namespace)
    chosen = Garbage(storage, where, image, state, python)
    collect(chosen, runs=runs, min_age_hours=min_age, dry_run=dry_run, yes=yes)
