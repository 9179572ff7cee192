# SPDX-License-Identifier: Apache-2.0
"""What `run --local` and `gc` do once their options are read."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from kinema_cli.cluster import Where


@dataclass(frozen=True, slots=True)
class Options:
    """How a job runs on this machine."""

    volumes: tuple[str, ...]
    secrets: tuple[str, ...]
    accelerator: Accelerator | None
    devices: int | None
    only: Stage | None
    first: Stage | None
    dry_run: bool
    live: bool
    state: Path | None
    scratch: Path | None
    python: str


def run_here(file: Path, options: Options) -> int:
    """Run a job; its exit code. Again: skips what is published, and training goes on from its last checkpoint."""
    found = jobfile.read(file)
    volumes = places.folders(options.volumes, option="--volume")
    secrets = places.folders(options.secrets, option="--secret")
    own = places.own_credentials(os.environ, home=Path.home())
    spec = places.localized(found.spec, volumes=volumes, secrets=secrets, own=own)
    course = courses.plan(found, spec, machine=machine.detect(options.accelerator), devices=options.devices)
    stages = courses.selected(course, only=options.only, first=options.first)
    console = Console()
    if options.dry_run:
        typer.echo(describe.describe(course, stages, python="python"), nl=False)
        return 0
    _need_stages(options.python)
    folder = records.Folder(options.state or records.root(os.environ), course)
    with folder.locked() as lock, Stops().listening() as stops:
        screen = Live(console, stages) if options.live and console.is_terminal else Plain(console)
        try:
            runner = Runner(course, folder, screen, stops, options.python, secrets, options.scratch, lock)
            outcome = runner.run(stages)
        finally:
            screen.close()
    _say_end(course, outcome, stopped=stops.count > 0)
    return outcome.code


@dataclass(frozen=True, slots=True)
class Garbage:
    """Where artifacts are collected, and by whom."""

    storage: str
    where: Where | None
    """The cluster; None: this machine."""
    image: str | None
    state: Path | None
    python: str

    @property
    def local(self) -> bool:
        """Whether a folder of this machine is meant."""
        return self.where is None


def collect(chosen: Garbage, *, runs: bool, min_age_hours: float, dry_run: bool, yes: bool) -> None:
    """List what no job refers to, ask, and delete it."""
    storage = _storage(chosen.storage, local=chosen.local)
    config = GarbageConfig(storage=storage, runs=runs, min_age_seconds=round(min_age_hours * 3600))
    if chosen.local:
        _need_stages(chosen.python)
    if dry_run or not yes:
        listed = _collected(chosen, config, for_show=True)
        typer.echo(collection.table(listed))
        if dry_run or not listed.removed:
            return
        if chosen.local:
            typer.echo("Only jobs that ran on this machine were asked.")
        typer.confirm("Delete these folders?", abort=True)
    typer.echo(collection.table(_collected(chosen, config, for_show=False)))


def _collected(chosen: Garbage, config: GarbageConfig, *, for_show: bool) -> GarbageResult:
    config = config.model_copy(update={"dry_run": for_show})
    if chosen.where is None:
        known = records.records(chosen.state or records.root(os.environ))
        keep = collection.keep_local(known, config.storage)
        return collection.run_here(config.model_copy(update={"keep": keep}), python=chosen.python)
    # The Kubernetes client takes a second to import; a laptop needs none.
    from kinema_cli import gc_cluster

    return gc_cluster.run_there(config, chosen.where, image=chosen.image)


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
