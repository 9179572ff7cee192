# SPDX-License-Identifier: Apache-2.0
"""Videos that are set aside, each with its reason; the others go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kinema_api.base import Model, Word


class Reason(Word):
    """Why a video is set aside."""

    BAD_ROW = "BadRow"
    OUTSIDE = "OutsideDataset"
    MISSING = "MissingVideo"
    NO_CAPTION = "MissingCaption"
    BAD_CAPTION = "UnreadableCaption"
    UNREADABLE = "UnreadableVideo"
    TOO_SHORT = "TooShort"
    RATE_TOO_LOW = "RateTooLow"
    NO_BUCKET = "NoBucket"
    DUPLICATE = "Duplicate"


class Quarantined(Model):
    """One line of quarantine.jsonl."""

    video: str
    """The video, relative to the dataset's folder; the line of a listing that names none."""
    reason: Reason
    """For programs."""
    message: str
    """For people."""


def summary(entries: Iterable[Quarantined]) -> str:
    """Counts of reasons, the most frequent first, each with one example."""
    entries = list(entries)
    example = {entry.reason: entry for entry in reversed(entries)}
    counts = Counter(entry.reason for entry in entries).most_common()
    return "; ".join(
        f"{count} {reason} (for instance {example[reason].video}: {example[reason].message})"
        for reason, count in counts
    )
