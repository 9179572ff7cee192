# SPDX-License-Identifier: Apache-2.0
"""Signs of life of the watches.

The informer shows events but neither bookmarks nor reconnections. It ends every watch after `SERVER_SECONDS` at the
latest and opens it again, so that a watch without a successful opening for much longer is dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import aiohttp

SERVER_SECONDS = 240
"""The API server ends a watch after so long. An integer: `240.0` is refused."""
DEAD_SECONDS = 3 * SERVER_SECONDS
"""A watch that has shown no life for so long is dead."""


class Watches:
    """When each watch last showed life, on a monotonic clock."""

    def __init__(self, resources: Iterable[str] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats = {resource: clock() for resource in resources}

    def expect(self, resource: str) -> None:
        """This resource is watched from now on."""
        self._beats[resource] = self._clock()

    def beat(self, resource: str) -> None:
        """A watch shows life."""
        if resource in self._beats:
            self._beats[resource] = self._clock()

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each watch last showed life."""
        return {resource: now - beat for resource, beat in self._beats.items()}

    def dead(self) -> list[str]:
        """Watches that have shown no life for too long."""
        return [resource for resource, age in self.ages(self._clock()).items() if age > DEAD_SECONDS]

    def trace(self) -> aiohttp.TraceConfig:
        """Sees watches open in an HTTP session."""

        async def opened(_: Any, __: SimpleNamespace, done: aiohttp.TraceRequestEndParams) -> None:
            if done.response.status == 200 and done.url.query.get("watch") == "true":
                self.beat(done.url.path.rsplit("/", 1)[-1])

        config = aiohttp.TraceConfig()
        config.on_request_end.append(opened)
        return config
