# SPDX-License-Identifier: Apache-2.0
"""Sees that a process does not move any more, or that the process it works for is gone."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kinema_stage.pace import WINDOW, Phase, Rule, limit

CHECK_SECONDS = 1.0
ASLEEP_SECONDS = 5.0
"""A watcher whose own look comes so much too late did not run itself, and says nothing of others for that time."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing moved for too long."""

    seconds: float
    limit: float
    phase: Phase

    def __str__(self) -> str:
        """The end of a sentence that begins with who."""
        what = {
            Phase.STARTING: "did not begin its work",
            Phase.SAVING: "waited for a checkpoint that does not grow",
        }.get(self.phase, "did not move")
        return f"{what} for {self.seconds:.0f} s, the limit is {self.limit:.0f} s"


class Awake:
    """Seconds that this process itself ran: neither a pause of the container nor of the machine counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._asleep = 0.0

    def now(self) -> float:
        """The time on this clock; call it at least every `CHECK_SECONDS` or so."""
        now = self._clock()
        if now - self._last > ASLEEP_SECONDS:
            self._asleep += now - self._last
        self._last = now
        return now - self._asleep


class Watchdog:
    """A thread that looks whether the work still moves.

    Args:
        rule: what bounds the limit.
        on_stall: called once, in the watching thread, when nothing moved for too long; ends the process.
        on_beat: called in the watching thread at each look: nobody hears of a process that is frozen.
        parent: the process to live and die with.
        orphaned: the exit code when the parent is gone.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        *,
        rule: Rule,
        on_stall: Callable[[Stall], None],
        on_beat: Callable[[], None] | None = None,
        parent: int | None = None,
        orphaned: int = 1,
        interval: float = CHECK_SECONDS,
    ) -> None:
        self._rule = rule
        self._on_stall = on_stall
        self._on_beat = on_beat
        self._parent = parent
        self._orphaned = orphaned
        self._interval = interval
        self._phase = Phase.STARTING
        self._moves: deque[float] = deque(maxlen=WINDOW)
        self._count = 0
        self._before = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._phase = Phase.ENDED
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def moved(self, *, work: bool = True) -> None:
        """Something has moved; `work` ends the start, and its pace makes the limit."""
        now = time.monotonic()
        if work and self._phase is Phase.STARTING:
            self._phase = Phase.WORKING
        elif work and self._phase is Phase.WORKING:
            self._moves.append(now - self._before)
        self._before = now
        self._count += 1

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint holds up the work."""
        before, self._phase = self._phase, Phase.SAVING
        self.moved(work=False)
        try:
            yield
        finally:
            self._phase = before
            self.moved(work=False)

    @property
    def phase(self) -> Phase:
        """What the process is at."""
        return self._phase

    @property
    def limit(self) -> float:
        """Seconds without a move that are taken for a hang at this moment."""
        return limit(self._rule, phase=self._phase, moves=tuple(self._moves))

    def _run(self) -> None:
        awake = Awake()
        count, since = self._count, awake.now()
        while not self._stop.wait(self._interval):
            if self._parent is not None and not alive(self._parent):
                os._exit(self._orphaned)
            now = awake.now()
            if count != self._count:
                count, since = self._count, now
            if now - since > self.limit:
                self._on_stall(Stall(seconds=now - since, limit=self.limit, phase=self._phase))
                return
            if self._on_beat is not None:
                self._on_beat()
        if self._on_beat is not None:
            self._on_beat()


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
