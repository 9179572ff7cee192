# SPDX-License-Identifier: Apache-2.0
"""Pods first, words later: while many children are being created, statuses and Events wait.

A status costs the API server more than a child. Where many jobs come at once, the pods of the last ones would wait for
what is written about the first ones. A job that comes alone waits for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

MANY = 6
"""Children created within `SPAN` that make a rush."""
SPAN = 2.0
"""Seconds."""
PATIENCE = 10.0
"""Seconds that a word waits for the end of a rush at most."""
SPEAKERS = 4
"""Statuses and Events that are written side by side."""


class Rush:
    """Knows when children were created; belongs to one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._creations: deque[float] = deque(maxlen=MANY)
        self._speakers = asyncio.Semaphore(SPEAKERS)

    def created(self) -> None:
        """A child was created."""
        self._creations.append(self._clock())

    def left(self) -> float:
        """Seconds until the rush is over, if no other child is created."""
        if len(self._creations) < MANY:
            return 0.0
        return max(0.0, self._creations[0] + SPAN - self._clock())

    @asynccontextmanager
    async def over(self) -> AsyncIterator[None]:
        """Enter when the rush is over, or lasts too long; a few at a time."""
        end = self._clock() + PATIENCE
        async with self._speakers:
            # No event ends it: each creation prolongs it.
            while (wait := min(self.left(), end - self._clock())) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait)
            yield
