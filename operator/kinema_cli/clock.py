# SPDX-License-Identifier: Apache-2.0
"""The time, in one place: a test sets it."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)
