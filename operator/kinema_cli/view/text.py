# SPDX-License-Identifier: Apache-2.0
"""Durations, times and marks, as people read them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Raw = Mapping[str, Any]

STYLES = {
    "Succeeded": "green",
    "Skipped": "green",
    "Running": "cyan",
    "Pending": "yellow",
    "Suspended": "yellow",
    "Stopped": "yellow",
    "Failed": "red",
    "Cancelled": "magenta",
}
MARKS = {"Succeeded": "✓", "Skipped": "=", "Running": "▶", "Pending": "·", "Stopped": "■", "Failed": "✗"}


def moment(text: str | None) -> datetime | None:
    """A time of the API server; None for none."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def age(since: str | None, now: datetime) -> str:
    """How long ago something was; empty when it was never."""
    at = moment(since)
    return duration((now - at).total_seconds()) if at is not None else ""


def between(start: str | None, end: str | None, now: datetime) -> str:
    """How long something took, or has taken so far."""
    begin = moment(start)
    return duration(((moment(end) or now) - begin).total_seconds()) if begin is not None else ""


def duration(seconds: float) -> str:
    """Two units at most: 45s, 3m20s, 3h12m, 2d4h."""
    total = max(0, round(seconds))
    units = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
    for index, (unit, size) in enumerate(units):
        count, rest = divmod(total, size)
        if count and unit != "s":
            below, width = units[index + 1]
            return f"{count}{unit}" + (f"{rest // width}{below}" if rest // width else "")
    return f"{total}s"


def cut(text: str, width: int) -> str:
    """At most so many characters, the last one a mark where something is missing."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: max(0, width - 1)]}…"


def plural(count: int, word: str) -> str:
    """A number and its word."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def money(amount: float, currency: str) -> str:
    """An amount of money."""
    return f"{amount:,.2f} {currency}" if amount < 100 else f"{amount:,.0f} {currency}"
