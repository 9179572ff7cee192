# SPDX-License-Identifier: Apache-2.0
"""Time that passes when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Appointment:
    due: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A clock and its timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.appointments: list[Appointment] = []

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> Appointment:
        appointment = Appointment(self.now + seconds, call)
        self.appointments.append(appointment)
        return appointment

    def advance(self, seconds: float) -> None:
        """Let time pass, and call what is due in its order."""
        end = self.now + seconds
        while True:
            due = [item for item in self.appointments if not item.cancelled and item.due <= end]
            if not due:
                break
            first = min(due, key=lambda item: item.due)
            self.appointments.remove(first)
            self.now = first.due
            first.call()
        self.now = end
