# SPDX-License-Identifier: Apache-2.0
"""Signs of life from inside long transfers: a copy of a large file moves, though its unit of work takes an hour.

Whoever watches this process listens; whoever copies beats. Both are of the process as a whole, as its threads share the
one connection to the store.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_listeners: list[Callable[[], None]] = []
_lock = threading.Lock()


@contextlib.contextmanager
def heard(listener: Callable[[], None]) -> Iterator[None]:
    """Call `listener` at every beat, in the thread that copies, which must not wait for it."""
    with _lock:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)


def beat() -> None:
    """Something has moved."""
    with _lock:
        present = tuple(_listeners)
    for listener in present:
        listener()
