# SPDX-License-Identifier: Apache-2.0
"""Which bucket a piece of a source goes into, and which pieces are left out; pure.

As in Open-Sora (hpcaitech/Open-Sora, opensora/datasets/bucket.py) the largest frame that the source fills comes first,
there the longest clip, and a piece that a bucket does not keep falls through to the next. Whether it keeps a piece
follows from the seed, the source's content and the piece's place, so that a dataset may grow without other clips.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kinema_api.base import Word
from kinema_api.buckets import Bucket

NEAR = 0.8
"""Of a bucket's pixels that a source must have; buckets whose areas differ by less are of one size, and the one of the
nearest shape is taken."""


class LeftOut(Word):
    """Why a piece of a source is in no clip."""

    NOT_KEPT = "notKept"
    """No bucket that it fits kept it."""
    CAPPED = "capped"
    """Its video has more clips than clipsPerVideo."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some frames of a source, and the bucket that takes them: none leaves them out."""

    first: int
    """The first frame, at the clips' rate."""
    frames: int
    bucket: Bucket | None


@dataclass(frozen=True, slots=True)
class Source:
    """What of a video decides its pieces.

    Args:
        tag: its content's.
        samples: frames at the clips' rate.
        height: pixels, as shown.
        width: pixels, as shown.
        still: it is an image.
    """

    tag: str
    samples: int
    height: int
    width: int
    still: bool


def fitting(buckets: Iterable[Bucket], source: Source) -> list[Bucket]:
    """The buckets that a source fills, in the order in which they are tried.

    Of those of one size and length only the one of the nearest shape: a tall video is not cropped to a wide clip where
    there is a tall bucket.
    """
    enough = [
        bucket
        for bucket in buckets
        if (bucket.frames == 1) is source.still
        and bucket.frames <= source.samples
        and source.height * source.width >= NEAR * bucket.area
    ]
    ordered: list[Bucket] = []
    for level in _levels(enough):
        for frames in sorted({bucket.frames for bucket in level}, reverse=True):
            same = [bucket for bucket in level if bucket.frames == frames]
            ordered.append(min(same, key=lambda bucket: (_cropped(bucket, source), -bucket.area, bucket.geometry)))
    return ordered


def _levels(buckets: Sequence[Bucket]) -> Iterator[list[Bucket]]:
    """Buckets of about the same area, the largest first."""
    left = sorted(buckets, key=lambda bucket: -bucket.area)
    while left:
        level = [bucket for bucket in left if bucket.area >= NEAR * left[0].area]
        left = left[len(level) :]
        yield level


def _cropped(bucket: Bucket, source: Source) -> float:
    """The share of the source's picture that the bucket's shape cuts off."""
    ratio = (bucket.width / bucket.height) / (source.width / source.height)
    return 1 - min(ratio, 1 / ratio)


def pieces(buckets: Sequence[Bucket], source: Source, *, seed: int) -> tuple[Piece, ...]:
    """A source from its start, piece by piece, until what is left fits no bucket."""
    found: list[Piece] = []
    first = 0
    order = fitting(buckets, source)
    while order:
        fit = [bucket for bucket in order if first + bucket.frames <= source.samples]
        if not fit:
            break
        taken = next((bucket for bucket in fit if _keeps(bucket, source.tag, first, seed=seed)), None)
        piece = Piece(first=first, frames=(taken or fit[0]).frames, bucket=taken)
        found.append(piece)
        first += piece.frames
        if source.still:
            break
    return tuple(found)


def _keeps(bucket: Bucket, tag: str, first: int, *, seed: int) -> bool:
    """The coin of one bucket for one piece."""
    text = f"{seed}:{tag}:{first}:{bucket.geometry}"
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"kinema-bucket").digest()
    return int.from_bytes(digest, "little") / 2**64 < bucket.keep


def capped(pieces: Sequence[Piece], *, most: int) -> tuple[list[Piece], int]:
    """At most so many of the pieces that became clips, evenly spread (0: all), and how many that leaves out."""
    taken = [piece for piece in pieces if piece.bucket is not None]
    count = min(len(taken), most) if most else len(taken)
    chosen = [taken[(2 * index + 1) * len(taken) // (2 * count)] for index in range(count)]
    return chosen, len(taken) - count


@dataclass(slots=True)
class Tally:
    """Counts what became of all pieces."""

    buckets: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def say(self) -> str:
        """Both counts in words; empty where there is one geometry and nothing is left out."""
        parts = []
        if len(self.buckets) > 1:
            parts.append(f"by bucket: {listed(self.buckets)}")
        if self.left_out.total():
            words = {LeftOut.NOT_KEPT.value: "by keep", LeftOut.CAPPED.value: "by clipsPerVideo"}
            reasons = listed({words[name]: count for name, count in self.left_out.items() if count})
            parts.append(f"{self.left_out.total()} clips left out: {reasons}")
        return "; ".join(parts)


def listed(counts: Mapping[str, int]) -> str:
    """Counts by name, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered)
