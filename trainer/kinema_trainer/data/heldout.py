# SPDX-License-Identifier: Apache-2.0
"""Which clips are held out of the training: it follows from their keys alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from kinema_api.exits import Exit, StageError
from kinema_api.validation import Validation


def mark(key: str) -> float:
    """A number in [0, 1) that follows from a clip's key."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"kinema-held").digest()
    return int.from_bytes(digest, "little") / 2**64


def held_out(keys: Sequence[str], settings: Validation) -> tuple[int, ...]:
    """The places of the clips that are held out, by their marks.

    With a share, a clip is held out if its mark is below it: more clips change nothing for those that are there.

    Raises:
        StageError: nothing is left to train on.
    """
    if not settings.every_steps:
        return ()
    marks = [mark(key) for key in keys]
    order = sorted(range(len(keys)), key=lambda place: (marks[place], keys[place]))
    below = sum(found < settings.share for found in marks)
    count = settings.clips if settings.clips is not None else max(1, below)
    if count >= len(keys):
        raise StageError(
            Exit.USER,
            f"stages.train.validation holds out {count} of {len(keys)} clips, so that none is left to train on: lower"
            " clips or share, or set everySteps to 0",
        )
    return tuple(order[:count])
