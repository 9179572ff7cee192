# SPDX-License-Identifier: Apache-2.0
"""How often one caller may ask."""

from __future__ import annotations

import time
from collections.abc import Callable

from cachetools import LRUCache

from kinema_server.refusal import too_many
from kinema_server.reviews import LIMIT, digest_of


class Limiter:
    """A bucket of permissions for each token: one goes with each request, and they grow back at a steady rate.

    Args:
        rate: permissions that grow back in a second.
        burst: permissions of a full bucket.
        clock: seconds.
    """

    def __init__(self, *, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: LRUCache[bytes, tuple[float, float]] = LRUCache(maxsize=LIMIT)
        """Permissions that were left, and when."""

    def take(self, token: str) -> None:
        """Let a request of a token pass.

        Raises:
            Refusal: 429, with the time after which the next one may come.
        """
        key, now = digest_of(token), self._clock()
        left, then = self._buckets.get(key, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._rate)
        if left < 1:
            self._buckets[key] = (left, now)
            raise too_many(
                f"one pod may post {self._rate:g} times a second; keep the newest numbers and send them later",
                seconds=(1 - left) / self._rate,
            )
        self._buckets[key] = (left - 1, now)
