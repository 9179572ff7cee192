# SPDX-License-Identifier: Apache-2.0
"""Stages on the screen: a live line each on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from kinema_api.names import Stage
from kinema_cli.process import Reading

_PLAIN_LINES = 20
"""Lines about one attempt that a run without a terminal prints, at most."""
_PLAIN_SECONDS = 2.0
"""Time between two such lines, at least; the last one always comes."""


def duration(seconds: float) -> str:
    """Two units, for instance 3h12m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def numbers(reading: Reading) -> str:
    """Step, loss and time left."""
    parts = [f"{reading.done}/{reading.total}"]
    if reading.loss is not None:
        parts.append(f"loss {reading.loss:.4f}")
    if reading.eta_seconds is not None:
        parts.append(f"{duration(reading.eta_seconds)} left")
    return ", ".join(parts)


class Screen(Protocol):
    """Where news goes."""

    def started(self, stage: Stage, said: str) -> None: ...

    def moved(self, stage: Stage, reading: Reading) -> None: ...

    def ended(self, stage: Stage, said: str, *, well: bool) -> None: ...

    def note(self, said: str) -> None: ...

    def close(self) -> None: ...


class Plain:
    """Lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[Stage, tuple[int, float]] = {}

    def started(self, stage: Stage, said: str) -> None:
        self._told.pop(stage, None)
        self.note(f"{stage}: {said}")

    def moved(self, stage: Stage, reading: Reading) -> None:
        if reading.warning:
            self.note(f"{stage}: warning: {reading.warning}")
        elif reading.done is not None and reading.total:
            share, now = reading.done * _PLAIN_LINES // reading.total, time.monotonic()
            told, at = self._told.get(stage, (-1, float("-inf")))
            if share != told and (now - at >= _PLAIN_SECONDS or reading.done == reading.total):
                self._told[stage] = (share, now)
                self.note(f"{stage}: {100 * reading.done // reading.total} %, {numbers(reading)}")

    def ended(self, stage: Stage, said: str, *, well: bool) -> None:
        self.note(f"{stage}: {'done' if well else 'failed'}: {said}")

    def note(self, said: str) -> None:
        self._console.print(said, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to put back."""


class Live:
    """One line a stage."""

    def __init__(self, console: Console, stages: tuple[Stage, ...]) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[mark]} {task.description:<9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[said]}", markup=False),
            console=console,
        )
        self._tasks: dict[Stage, TaskID] = {
            stage: self._progress.add_task(stage.value, total=100, mark="·", said="") for stage in stages
        }
        self._progress.start()

    def started(self, stage: Stage, said: str) -> None:
        self._progress.update(self._tasks[stage], completed=0, mark="▶", said=said)

    def moved(self, stage: Stage, reading: Reading) -> None:
        if reading.warning:
            self.note(f"{stage}: warning: {reading.warning}")
        elif reading.done is not None and reading.total:
            self._progress.update(
                self._tasks[stage], completed=100 * reading.done / reading.total, said=numbers(reading)
            )

    def ended(self, stage: Stage, said: str, *, well: bool) -> None:
        if well:
            self._progress.update(self._tasks[stage], completed=100)
        self._progress.update(self._tasks[stage], mark="✓" if well else "✗", said=said)

    def note(self, said: str) -> None:
        self._progress.console.print(said, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()
