# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a batch a process has.

The samples lie side by side, and each is cut into as many parts as there are processes to share it, so that every
process has the same work whatever the samples' lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kinema_trainer.parallel.layout import ParallelLayout


def part(length: int, *, index: int, count: int) -> tuple[int, int]:
    """First and last but one of the `index`-th of `count` nearly equal parts; some are empty if there are too few."""
    return length * index // count, length * (index + 1) // count


@dataclass(frozen=True)
class Pieces:
    """How many tokens of each sample each process of an axis has: `lengths[process][sample]`."""

    lengths: tuple[tuple[int, ...], ...]

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """Tokens of each process."""
        return tuple(sum(own) for own in self.lengths)

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """Tokens of each sample, over all processes of the axis."""
        return tuple(sum(parts) for parts in zip(*self.lengths, strict=True))

    def merged(self, parts: Sequence[Tensor]) -> Tensor:
        """The tokens [tokens, ...] of all processes, sample by sample, from those of each."""
        if len(self.samples) == 1:
            return torch.cat(tuple(parts))
        split = [tokens.split(lengths) for tokens, lengths in zip(parts, self.lengths, strict=True)]
        return torch.cat([own[sample] for sample in range(len(self.samples)) for own in split])

    def parted(self, tokens: Tensor) -> list[Tensor]:
        """The tokens of each process, from all of them sample by sample: undoes `merged`."""
        flat = [length for parts in zip(*self.lengths, strict=True) for length in parts]
        pieces, count = tokens.split(flat), len(self.lengths)
        if len(self.samples) == 1:
            return list(pieces)
        return [torch.cat(pieces[process::count]) for process in range(count)]


@dataclass(frozen=True)
class Share:
    """What one process has of a batch.

    Args:
        lengths: tokens of each sample.
        layout: who shares.
        rank: whose share.
    """

    lengths: tuple[int, ...]
    layout: ParallelLayout
    rank: int

    @cached_property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """First and last but one token of each sample between the matrices, where the loss is taken."""
        return self._cut(self.layout.token_part(self.rank), self.layout.token_parts)

    @cached_property
    def inner(self) -> tuple[tuple[int, int], ...]:
        """The same inside attention's and the feed-forward network's matrices: `sequence` gathers tokens for them."""
        return self._cut(self._context, self.layout.context)

    @cached_property
    def tensor(self) -> Pieces:
        """Over the tensor axis, with `sequence`."""
        count, first = self.layout.sizes.tensor, self._context * self.layout.sizes.tensor
        return self._pieces([(first + index, self.layout.token_parts) for index in range(count)])

    @cached_property
    def ulysses(self) -> Pieces:
        """Over the ulysses axis."""
        count, ring = self.layout.sizes.ulysses, self.layout.coordinates(self.rank).ring
        return self._pieces([(ring * count + index, self.layout.context) for index in range(count)])

    @cached_property
    def ring(self) -> Pieces:
        """Over the ring axis, once ulysses has gathered tokens."""
        count = self.layout.sizes.ring
        return self._pieces([(index, count) for index in range(count)])

    @property
    def _context(self) -> int:
        at = self.layout.coordinates(self.rank)
        return at.ring * self.layout.sizes.ulysses + at.ulysses

    def _cut(self, index: int, count: int) -> tuple[tuple[int, int], ...]:
        return tuple(part(length, index=index, count=count) for length in self.lengths)

    def _pieces(self, places: Iterable[tuple[int, int]]) -> Pieces:
        return Pieces(tuple(counts(self._cut(index, count)) for index, count in places))


def counts(rows: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """How many rows each range has."""
    return tuple(stop - start for start, stop in rows)
