# SPDX-License-Identifier: Apache-2.0
"""The queue of keys to look at, with the semantics of client-go's workqueue.

A key stands in the queue at most once and is never worked on by two workers at a time. Whatever is added while a key
is worked on makes it dirty, and a dirty key is queued again when the worker is done: no news is lost, however it falls
between reading the state and finishing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

BACKOFF_FIRST = 1.0
BACKOFF_LAST = 300.0
"""Seconds between two attempts at a key that keeps failing."""


class Timer(Protocol):
    """What a scheduled call can be stopped by."""

    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Timer]
"""Calls back after some seconds."""


def backoff(failures: int, *, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait after so many failures in a row: doubling, within bounds, and at most halved by chance."""
    # The exponent is bounded, since a key may fail for weeks and a float overflows at 2**1024.
    ceiling = min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** min(failures, 32))
    return max(BACKOFF_FIRST, ceiling * (0.5 + draw() / 2))


class Queue:
    """Keys to look at. Belongs to one event loop; no method blocks but `get`."""

    def __init__(self, *, later: Later | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._later = later if later is not None else _loop_later
        self.clock = clock
        """What the queue tells time by, in seconds."""
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._dirty: dict[str, float] = {}
        """Keys that need a look, and since when. A dirty key is ready, or waits for `done`."""
        self._working: set[str] = set()
        self._timers: dict[str, tuple[float, Timer]] = {}
        self._failures: dict[str, int] = {}

    def __len__(self) -> int:
        return self._ready.qsize()

    @property
    def delayed(self) -> int:
        """Keys that wait for their time."""
        return len(self._timers)

    def add(self, key: str) -> None:
        """Look at `key` as soon as a worker is free."""
        if key in self._dirty:
            return
        self._dirty[key] = self.clock()
        # A key in work is queued by `done`; queued here, a second worker would take it.
        if key not in self._working:
            self._ready.put_nowait(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Look at `key` after some seconds, unless it is looked at before; of two appointments the earlier stays."""
        if seconds <= 0:
            self.add(key)
            return
        due = self.clock() + seconds
        held = self._timers.get(key)
        if held is not None:
            if held[0] <= due:
                return
            held[1].cancel()
        self._timers[key] = (due, self._later(seconds, lambda: self._due(key)))

    def retry(self, key: str, *, at_least: float = 0.0) -> float:
        """Look at `key` after its backoff; returns the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = max(backoff(failures), at_least)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: str) -> None:
        """`key` has succeeded: its next failure waits the shortest time."""
        self._failures.pop(key, None)

    async def get(self) -> tuple[str, float]:
        """The next key, and the seconds that it has waited; give it back by `done`."""
        key = await self._ready.get()
        # No await from here to the end: a cancelled worker would take the key with it.
        self._working.add(key)
        # What the worker sees is newer than every older appointment; it makes new ones.
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer[1].cancel()
        return key, self.clock() - self._dirty.pop(key)

    def done(self, key: str) -> None:
        """The worker has finished with `key`, however it went."""
        self._working.discard(key)
        if key in self._dirty:
            self._ready.put_nowait(key)

    def close(self) -> None:
        """Drop every appointment."""
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self.add(key)


def _loop_later(seconds: float, call: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(seconds, call)
