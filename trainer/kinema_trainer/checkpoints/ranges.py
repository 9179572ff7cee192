# SPDX-License-Identifier: Apache-2.0
"""Spans of bytes, joined so that a far store is asked less often."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

GAP_BYTES = 1 << 20
"""Unwanted bytes between two spans that cost less than another request."""


class Span(NamedTuple):
    """Bytes from `start` up to, but not with, `end`."""

    start: int
    end: int


def joined(spans: Iterable[Span], *, limit: int, gap: int = GAP_BYTES) -> list[Span]:
    """Spans that cover the given ones, in order.

    Args:
        spans: in any order; they may touch or overlap.
        limit: spans are joined up to so many bytes; a longer one stays as it is.
        gap: unwanted bytes that may be read between two of them.
    """
    found: list[Span] = []
    for span in sorted(set(spans)):
        last = found[-1] if found else None
        if last is not None and span.start < last.end:
            found[-1] = Span(last.start, max(last.end, span.end))
        elif last is not None and span.start - last.end <= gap and span.end - last.start <= limit:
            found[-1] = Span(last.start, span.end)
        else:
            found.append(span)
    return found
