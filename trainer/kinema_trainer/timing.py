# SPDX-License-Identifier: Apache-2.0
"""What the time of a step goes to."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from kinema_api.base import Word


class Phase(Word):
    """A part of a step."""

    DATA = "data"
    """The loop waits for the next batch."""
    WAIT = "wait"
    """The loop waits for the other processes, to agree whether to go on and on the loss."""
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    """Clipping, the update, and the moving average."""
    CHECKPOINT = "checkpoint"
    """The loop is held up by a checkpoint."""


HOST = frozenset({Phase.DATA, Phase.WAIT, Phase.CHECKPOINT})
"""Phases in which the host waits: its clock times them, whatever the device does meanwhile."""


class Stopwatch:
    """Adds up the seconds of each phase.

    On an accelerator the others are timed between two events in the device's stream, which nobody waits for: a phase
    counts as soon as the device is found to have passed its end, so that the last one of a step may count in the next.

    Args:
        device: where the phases run.
        clock: of the host, seconds that only rise.
    """

    def __init__(self, device: torch.device, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._spent: dict[Phase, float] = {}
        self._running: deque[tuple[Phase, Any, Any]] = deque()
        self._spare: list[Any] = []

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """What happens inside is of this phase."""
        if self._module is None or phase in HOST:
            began = self._clock()
            try:
                yield
            finally:
                self._add(phase, self._clock() - began)
            return
        start, end = self._event(), self._event()
        start.record()
        try:
            yield
        finally:
            end.record()
            self._running.append((phase, start, end))

    def take(self) -> dict[str, float]:
        """The seconds of each phase, by name, since they were last taken."""
        while self._running and self._running[0][2].query():
            phase, start, end = self._running.popleft()
            self._add(phase, start.elapsed_time(end) / 1e3)
            self._spare += (start, end)
        spent, self._spent = self._spent, {}
        return {phase.value: spent.get(phase, 0.0) for phase in Phase}

    def _add(self, phase: Phase, seconds: float) -> None:
        self._spent[phase] = self._spent.get(phase, 0.0) + seconds

    def _event(self) -> Any:
        return self._spare.pop() if self._spare else self._module.Event(enable_timing=True)
