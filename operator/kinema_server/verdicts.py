# SPDX-License-Identifier: Apache-2.0
"""Remembers for a short while which token may post where, so that a post costs no review."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

LIMIT = 4096
"""Verdicts that are kept at once; the least recently used one goes first."""


class Verdicts:
    """Positive verdicts only: the uid of the job that a token, on a path, may speak for."""

    def __init__(self, *, lifetime: float, limit: int = LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._lifetime = lifetime
        self._limit = limit
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, *, token: str, path: str) -> str | None:
        """The job's uid; None when it is not known, or no longer."""
        key = _key(token, path)
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, uid = entry
        if self._clock() >= expires:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return uid

    def remember(self, *, token: str, path: str, uid: str) -> None:
        """Keep a verdict for its lifetime, counted from now."""
        key = _key(token, path)
        self._entries[key] = (self._clock() + self._lifetime, uid)
        self._entries.move_to_end(key)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def forget(self, *, token: str, path: str) -> None:
        """Drop a verdict that has turned out wrong."""
        self._entries.pop(_key(token, path), None)


def _key(token: str, path: str) -> bytes:
    # The token itself is not kept in memory. A token holds no line feed, so that the pair is unambiguous.
    return hashlib.sha256(f"{token}\n{path}".encode()).digest()
