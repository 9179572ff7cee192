# SPDX-License-Identifier: Apache-2.0
"""The long steps before a job runs: what is being done, since when, and what it says of itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

Say = Callable[[str], None]


def duration(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:03`."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Steps:
    """Prints numbered steps; a spinner with the last line on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, *, total: int) -> None:
        self.console = console
        self._total = total
        self._number = 0
        self._started = time.monotonic()

    @property
    def elapsed(self) -> str:
        """Since the first step."""
        return duration(time.monotonic() - self._started)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Say]:
        """One step; what it yields takes the lines that the step has to say."""
        self._number += 1
        label = f"[{self._number}/{self._total}] {title}"
        started = time.monotonic()
        shown = self._spinner(label) if self.console.is_terminal else self._lines(label)
        with shown as say:
            yield say
        self.console.print(Text(f"{label}: {duration(time.monotonic() - started)}", style="green"), soft_wrap=True)

    @contextlib.contextmanager
    def _spinner(self, label: str) -> Iterator[Say]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[last]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task: TaskID = progress.add_task(label, total=None, last="")
            yield lambda line: progress.update(task, last=line.strip()[-100:])

    @contextlib.contextmanager
    def _lines(self, label: str) -> Iterator[Say]:
        self.console.print(label, markup=False, highlight=False)
        yield lambda line: self.console.print(f"      {line.rstrip()}", markup=False, highlight=False, soft_wrap=True)
