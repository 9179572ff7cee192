# SPDX-License-Identifier: Apache-2.0
"""`kinema`: the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kinema_api.exits import Exit
from kinema_api.garbage import GarbageConfig, GarbageResult
from kinema_api.inputs import Storage
from kinema_api.names import Stage
from kinema_api.pool import Accelerator
from kinema_cli import course as courses
from kinema_cli import describe, jobfile, machine, places, records
from kinema_cli import gc as collection
from kinema_cli.errors import CommandError
from kinema_cli.local import Outcome, Runner, Stops
from kinema_cli.screen import Live, Plain

app = typer.Typer(
    name="kinema",
    help="Trains video-generation models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Trains video-generation models."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The job file, as kubectl applies it.")],
    local: Annotated[bool, typer.Option("--local", help="Run its stages as processes of this machine.")] = False,
    volume: Annotated[list[str] | None, typer.Option(help="CLAIM=/folder: where pvc://CLAIM lies here.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="NAME=/folder: a Secret as files, one a key.")] = None,
    accelerator: Annotated[Accelerator | None, typer.Option(help="What to compute on; found when left out.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, max=64, help="Training processes, one a device.")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Run only this stage (after check).")] = None,
    first: Annotated[Stage | None, typer.Option("--from", help="Run from this stage on (after check).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and start nothing.")] = False,
    progress: Annotated[bool, typer.Option(help="Live lines on a terminal.")] = True,
    state: Annotated[Path | None, typer.Option(help="Where configs and logs go (~/.local/state/kinema).")] = None,
    scratch: Annotated[Path | None, typer.Option(help="Local space to stage s3:// and hf:// in.")] = None,
    python: Annotated[str, typer.Option(help="The interpreter that has Kinema's stages.")] = sys.executable,
) -> None:
    """Run a job. Again: skips what is published, and training goes on from its last complete checkpoint."""
    if not local:
        raise CommandError(f"to run it in a cluster: kubectl apply -f {file}; to run it here: add --local")
    found = jobfile.read(file)
    volumes, secrets = places.folders(volume or (), option="--volume"), places.folders(secret or (), option="--secret")
    own = places.own_credentials(os.environ, home=Path.home())
    spec = places.localized(found.spec, volumes=volumes, secrets=secrets, own=own)
    course = courses.plan(found, spec, machine=machine.detect(accelerator), devices=devices)
    stages = courses.selected(course, only=stage, first=first)
    console = Console()
    if dry_run:
        typer.echo(describe.describe(course, stages, python="python"), nl=False)
        return
    _need_stages(python)
    folder = records.Folder(state or records.root(os.environ), course)
    with folder.locked() as lock, Stops().listening() as stops:
        screen = Live(console, stages) if progress and console.is_terminal else Plain(console)
        try:
            runner = Runner(course, folder, screen, stops, python, secrets, scratch, lock)
            outcome = runner.run(stages)
        finally:
            screen.close()
    _say_end(course, outcome, stopped=stops.count > 0)
    raise typer.Exit(outcome.code)


@app.command()
def gc(
    storage: Annotated[str, typer.Option(help="The workspace: pvc://CLAIM/PATH, or file:///folder with --local.")],
    local: Annotated[bool, typer.Option("--local", help="A folder here; local jobs protect theirs.")] = False,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Where the claim lies.")] = "default",
    min_age: Annotated[float, typer.Option(min=0, help="Hours since the last write under which a folder stays.")] = 24,
    runs: Annotated[bool, typer.Option("--runs", help="Free private folders of jobs that are gone, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    image: Annotated[str | None, typer.Option(help="The light stage image; a job's own when left out.")] = None,
    state: Annotated[Path | None, typer.Option(help="State of local jobs (~/.local/state/kinema).")] = None,
    python: Annotated[str, typer.Option(help="The interpreter that has Kinema's stages.")] = sys.executable,
) -> None:
    """Free artifacts that no job refers to."""
    config = GarbageConfig(storage=_storage(storage, local=local), runs=runs, min_age_seconds=round(min_age * 3600))
    if local:
        _need_stages(python)

    def collect(*, for_show: bool) -> GarbageResult:
        chosen = config.model_copy(update={"dry_run": for_show})
        if local:
            known = records.records(state or records.root(os.environ))
            keep = collection.keep_local(known, chosen.storage)
            return collection.run_here(chosen.model_copy(update={"keep": keep}), python=python)
        # The Kubernetes client takes a second to import; a laptop needs none.
        from kinema_cli import gc_cluster

        return gc_cluster.run_there(chosen, namespace=namespace, image=image)

    if dry_run or not yes:
        listed = collect(for_show=True)
        typer.echo(collection.table(listed))
        if dry_run or not listed.removed:
            return
        if local:
            typer.echo("Only jobs that ran on this machine were asked.")
        typer.confirm("Delete these folders?", abort=True)
    typer.echo(collection.table(collect(for_show=False)))


def _storage(uri: str, *, local: bool) -> Storage:
    wanted = "file:///folder" if local else "pvc://CLAIM/PATH"
    if not uri.startswith(wanted[:7] if local else "pvc://"):
        raise CommandError(f"--storage {uri}: write {wanted}; this version collects workspaces on volumes only")
    try:
        return Storage(uri=uri)
    except ValueError:
        raise CommandError(f"--storage {uri}: write {wanted}") from None


def _need_stages(python: str) -> None:
    try:
        done = subprocess.run([python, "-c", "import kinema_stage"], capture_output=True, timeout=60)
    except OSError as error:
        raise CommandError(f"--python {python}: {error.strerror}") from None
    if done.returncode:
        raise CommandError(
            f"{python} has no kinema_stage: install kinema-trainer[native] beside kinema, or name an interpreter that"
            " has it by --python"
        )


def _say_end(course: courses.Course, outcome: Outcome, *, stopped: bool) -> None:
    errors = Console(stderr=True)
    if outcome.code == Exit.OK:
        place = outcome.end.artifact or f"{course.spec.storage.uri}/{course.folder}"
        Console().out(f"done; results are in {place}", highlight=False)
    elif stopped:
        errors.out(f"stopped in {outcome.stage}; the same command goes on from there", highlight=False)
    else:
        errors.out(f"{outcome.stage} failed: {outcome.end.message}", highlight=False)
        if outcome.log is not None:
            errors.out(f"its log: {outcome.log}", highlight=False)


def main() -> None:
    """The command."""
    try:
        app()
    except CommandError as error:
        print(f"kinema: {error}", file=sys.stderr)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
