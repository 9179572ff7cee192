# SPDX-License-Identifier: Apache-2.0
"""Two programs that take turns on the same cores: each is stopped while the other one runs, so that drift hits both."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

POLL_SECONDS = 0.05
START_SECONDS = 300
"""How long a program may take to its first steps."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a program did in its turn."""

    seconds: list[float]
    """Of each whole step."""
    cpu: float
    """Processor seconds a step of the program and all that it started, broken steps at both ends included."""


class Player:
    """A program that appends a JSON line with its `time` after each step.

    Args:
        name: for people.
        command: starts it.
        environment: added to this process's own.
        steps: the file that it appends to.
        log: where its output goes.
    """

    def __init__(
        self, name: str, *, command: Sequence[str], environment: Mapping[str, str], steps: Path, log: Path
    ) -> None:
        self.name = name
        self._steps = steps
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Player:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._family():
            _send(process, signal.SIGKILL)
        self._process.wait()

    def turn(self, steps: int, *, seconds: float = START_SECONDS) -> Turn:
        """Run on until so many whole steps are made, then stop.

        The step in which the last turn ended counts for nothing.
        """
        before, cpu = len(self._times()), self._cpu()
        for process in self._family():
            _send(process, signal.SIGCONT)
        deadline = time.monotonic() + seconds
        while len(times := self._times()) < before + 1 + steps:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} makes no steps:\n{self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(POLL_SECONDS)
        # The starter last, or it would see its children stop; psutil lists it first.
        for process in reversed(self._family()):
            _send(process, signal.SIGSTOP)
        mine = times[before : before + 1 + steps]
        return Turn(
            seconds=[round(after - ahead, 4) for ahead, after in itertools.pairwise(mine)],
            cpu=round((self._cpu() - cpu) / (len(times) - before), 4),
        )

    def _cpu(self) -> float:
        used = [process.cpu_times() for process in self._family()]
        return sum(times.user + times.system for times in used)

    def _family(self) -> list[psutil.Process]:
        try:
            starter = psutil.Process(self._process.pid)
            return [starter, *starter.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _times(self) -> list[float]:
        if not self._steps.exists():
            return []
        lines = self._steps.read_bytes().splitlines(keepends=True)
        return [float(json.loads(line)["time"]) for line in lines if line.endswith(b"\n")]


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
