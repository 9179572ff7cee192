# SPDX-License-Identifier: Apache-2.0
"""Stays with a job until it ends: a live tree on a terminal, a line for each change anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live

from kinema_cli import clock
from kinema_cli.cluster import Where
from kinema_cli.ends import DELETED, end_of
from kinema_cli.printing import console, group, note, say, width
from kinema_cli.streams import changes
from kinema_cli.view.jobs import moving, name_of, phase_of
from kinema_cli.view.text import Raw
from kinema_cli.view.tree import tree
from kinema_kube import Kube
from kinema_kube.client import Object
from kinema_kube.resources import VIDEO_TRAINING_JOBS

_LEAST_SECONDS = 2.0
"""Time between two lines about progress alone."""


class Screen(Protocol):
    """Where a job is shown."""

    def show(self, job: Object) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A line for each change; about progress at most one in two seconds."""

    def __init__(self, write: Callable[[str], None] = say, clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._said: set[str] = set()
        self._moved, self._at = "", float("-inf")

    def show(self, job: Object) -> None:
        for line in news(job):
            if line not in self._said:
                self._said.add(line)
                self._write(line)
        moved = moving(job)
        if phase_of(job) == "Running" and moved and moved != self._moved and self._clock() - self._at >= _LEAST_SECONDS:
            self._moved, self._at = moved, self._clock()
            self._write(f"{(job.get('status') or {}).get('stage')}: {moved}")

    def close(self) -> None:
        """Nothing to put back."""


class Tree:
    """The job's tree, drawn anew with each change and each second."""

    def __init__(self, screen: Console) -> None:
        self._console = screen
        self._job: Object | None = None
        self._live = Live(console=screen, get_renderable=self._draw, refresh_per_second=2, vertical_overflow="visible")
        self._live.start()

    def _draw(self) -> Group:
        if self._job is None:
            return group([])
        return group(tree(self._job, now=clock.now(), width=width(self._console)))

    def show(self, job: Object) -> None:
        self._job = job
        self._live.refresh()

    def close(self) -> None:
        self._live.stop()


def news(job: Raw) -> list[str]:
    """All that has happened to a job so far, a sentence each: what was not said before is new. Pure."""
    status = job.get("status") or {}
    said = []
    for stage in status.get("stages") or []:
        for attempt in stage.get("attempts") or []:
            said.append(f"{stage['name']}: attempt {attempt['number']} started")
            if attempt["state"] == "Failed":
                why = attempt.get("message") or ""
                said.append(f"{stage['name']}: attempt {attempt['number']} failed ({attempt.get('reason')}): {why}")
            elif attempt["state"] == "Stopped":
                said.append(f"{stage['name']}: attempt {attempt['number']} stopped")
        if stage["state"] in ("Succeeded", "Skipped"):
            said.append(f"{stage['name']}: {stage['state'].lower()}: {stage.get('message') or 'done'}")
    if status.get("diagnosis") and not end_of(job):
        said.append(f"! {status['diagnosis']}")
    if phase_of(job) == "Suspended":
        said.append(f"suspended in {status.get('stage')}; `kinema resume {name_of(job)}` lets it go on")
    if end_of(job) is not None:
        said.append(f"{phase_of(job).lower()}: {status.get('message') or ''}".rstrip(": "))
        if status.get("diagnosis"):
            said.append(f"! {status['diagnosis']}")
    return said


async def follow(kube: Kube, name: str, *, namespace: str, screen: Screen | None = None) -> int:
    """Show a job until it ends; its exit code."""
    chosen = screen or screen_of()
    try:
        seen = changes(kube, VIDEO_TRAINING_JOBS, namespace=namespace, fields=f"metadata.name={name}", note=note)
        async for change in seen:
            if change.kind == "DELETED":
                chosen.close()
                note(f"job {name} was deleted")
                return DELETED
            chosen.show(change.object)
            end = end_of(change.object)
            if end is not None:
                return end
    finally:
        chosen.close()
    raise AssertionError("changes never end by themselves")


def screen_of() -> Screen:
    """What fits where the output goes."""
    screen = console()
    return Tree(screen) if screen.is_terminal else Lines()


def detached(name: str, where: Where) -> str:
    """What is said after Ctrl-C."""
    return f"detached; the job goes on. To come back: kinema get {name} --watch{where.options}"
