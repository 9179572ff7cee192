# SPDX-License-Identifier: Apache-2.0
"""Signs of life of the watches.

The informer shows events but neither bookmarks nor reconnections. It ends every watch after `SERVER_SECONDS` at the
latest and opens it again, so that a watch without a successful opening for much longer is dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from types import SimpleNamespace
from typing import Any

import aiohttp

SERVER_SECONDS = 240
"""The API server ends a watch after so long. An integer: `240.0` is refused."""
DEAD_SECONDS = 3 * SERVER_SECONDS
"""A watch that has shown no life for so long is dead."""


def key(resource: str, namespace: str | None = None) -> str:
    """The name of a watch: `jobs` over all namespaces, `team/jobs` over one."""
    return f"{namespace}/{resource}" if namespace else resource


class Watches:
    """When each watch last showed life, on a monotonic clock."""

    def __init__(self, watches: Iterable[str] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats = {watch: clock() for watch in watches}
        self._excused: frozenset[str] = frozenset()

    def expect(self, resource: str, namespace: str | None = None) -> None:
        """This resource is watched from now on."""
        self._beats[key(resource, namespace)] = self._clock()

    def beat(self, resource: str, namespace: str | None = None) -> None:
        """A watch shows life: the one of the namespace, or else the one of all."""
        for watch in (key(resource, namespace), resource):
            if watch in self._beats:
                self._beats[watch] = self._clock()
                return

    def excuse(self, namespaces: Collection[str]) -> None:
        """The API server refuses these namespaces: nobody can watch there. Those that are back start anew."""
        back = self._excused.difference(namespaces)
        self._excused = frozenset(namespaces)
        now = self._clock()
        self._beats.update({watch: now for watch in self._beats if _namespace(watch) in back})

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each watch last showed life."""
        return {watch: now - beat for watch, beat in self._beats.items()}

    def dead(self) -> list[str]:
        """Watches that have shown no life for too long."""
        return [
            watch
            for watch, age in self.ages(self._clock()).items()
            if age > DEAD_SECONDS and _namespace(watch) not in self._excused
        ]

    def trace(self) -> aiohttp.TraceConfig:
        """Sees watches open in an HTTP session."""

        async def opened(_: Any, __: SimpleNamespace, done: aiohttp.TraceRequestEndParams) -> None:
            if done.response.status == 200 and done.url.query.get("watch") == "true":
                *_, scope, namespace, resource = "", "", *done.url.path.split("/")
                self.beat(resource, namespace if scope == "namespaces" else None)

        config = aiohttp.TraceConfig()
        config.on_request_end.append(opened)
        return config


def _namespace(watch: str) -> str:
    """The namespace of a watch; empty when it is over all."""
    return watch.rpartition("/")[0]
