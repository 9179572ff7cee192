# SPDX-License-Identifier: Apache-2.0
"""What the seconds of an attempt went to."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from kinema_api.base import Word


class Activity(Word):
    """What a process does at a moment."""

    STARTING = "starting"
    PRODUCTIVE = "productive"
    DATA = "data"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class Spent:
    """Cumulative seconds of an attempt."""

    starting: float = 0.0
    productive: float = 0.0
    data: float = 0.0
    checkpoint: float = 0.0
    saved: float = 0.0
    """Those productive seconds whose work outlives the process."""

    def metrics(self) -> dict[str, float]:
        """The numbers that progress carries."""
        return {f"seconds_{name}": round(value, 1) for name, value in asdict(self).items()}

    def end(self, *, success: bool) -> dict[str, int]:
        """The whole seconds of a termination message: work that is not saved when the process fails is lost."""
        kept = self.productive if success else min(self.saved, self.productive)
        seconds = {
            "productive": kept,
            "starting": self.starting,
            "data": self.data,
            "checkpoint": self.checkpoint,
            "lost": self.productive - kept,
        }
        return {name: round(value) for name, value in seconds.items()}


class Ledger:
    """Counts seconds by activity; any thread may look.

    Args:
        started: when the attempt began, by `clock`; now when left out.
        clock: seconds that only rise.
    """

    def __init__(self, *, started: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock() if started is None else started
        self._activity = Activity.STARTING
        self._spent = Spent()
        self._lock = threading.Lock()

    def switch(self, activity: Activity) -> Activity:
        """From now on it does this; what it did so far is returned."""
        with self._lock:
            before, now = self._activity, self._clock()
            self._spent, self._since, self._activity = self._at(now), now, activity
            return before

    @contextlib.contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """Do this, then again what was done before."""
        before = self.switch(activity)
        try:
            yield
        finally:
            self.switch(before)

    def saved(self, productive: float) -> None:
        """So many productive seconds are in a complete checkpoint or a published result."""
        with self._lock:
            self._spent = replace(self._spent, saved=productive)

    def spent(self) -> Spent:
        """The seconds so far."""
        with self._lock:
            return self._at(self._clock())

    def _at(self, now: float) -> Spent:
        name = self._activity.value
        return replace(self._spent, **{name: getattr(self._spent, name) + now - self._since})
