# SPDX-License-Identifier: Apache-2.0
"""Ends a process that does not move, or whose stage is gone."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping

ENV_LIMIT = "KINEMA_STALL_SECONDS"
LIMIT_SECONDS = 1800.0
CHECK_SECONDS = 1.0


class Watchdog:
    """A thread that looks whether the loop still moves.

    Args:
        limit: seconds without a move that are taken for a hang; 0 never.
        parent: the process to live and die with.
        on_stall: called with the number of seconds before the process ends; may not block.
        code: what the process exits with after a hang.
    """

    def __init__(self, *, limit: float, parent: int | None, on_stall: Callable[[float], None], code: int) -> None:
        self._limit = limit
        self._parent = parent
        self._on_stall = on_stall
        self._code = code
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def moved(self) -> None:
        """The loop has moved."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """End the watch."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(CHECK_SECONDS):
            if self._parent is not None and not _alive(self._parent):
                os._exit(self._code)
            still = time.monotonic() - self._last
            if self._limit and still > self._limit:
                self._on_stall(still)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os._exit(self._code)


def stall_limit(environment: Mapping[str, str]) -> float:
    """Seconds without a move that are taken for a hang."""
    return float(environment.get(ENV_LIMIT, LIMIT_SECONDS))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
