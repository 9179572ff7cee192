# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT: finish the smallest unit of work and leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def listen(interrupted: threading.Event) -> None:
    """Set `interrupted` on the first SIGTERM or SIGINT; a second SIGINT raises KeyboardInterrupt as ever.

    Call it from the main thread.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
