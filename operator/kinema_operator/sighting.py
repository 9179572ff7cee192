# SPDX-License-Identifier: Apache-2.0
"""For how long something has been what it is, on our own clock: those of machines are never compared."""

from __future__ import annotations

import time
from collections.abc import Callable


class Sighting:
    """The last thing that was seen, and since when; it may be forgotten, and then seems new."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: object = None
        self._since = clock()

    def age(self, what: object) -> float:
        """Seconds since something was seen to be this; 0 when it is seen for the first time."""
        now = self._clock()
        if what != self._seen:
            self._seen, self._since = what, now
        return now - self._since
