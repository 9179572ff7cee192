# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(what: str, test: Callable[[], T | None], *, seconds: float = 120.0, poll: float = 0.1) -> T:
    """The first answer of `test` that is true; AssertionError with `what` when there is none in time."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while True:
        answer = test()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        pause.wait(poll)
