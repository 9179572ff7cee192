# SPDX-License-Identifier: Apache-2.0
"""Which process holds which part of the model and of the data: pure arithmetic, without any process group."""

from __future__ import annotations

from dataclasses import dataclass

from kinema_api import layout as api
from kinema_api.catalogue import Entry
from kinema_api.exits import Exit, StageError
from kinema_api.layout import AXES, LayoutError, Sizes, Widths

__all__ = ["Coordinates", "ParallelLayout", "widths"]


def widths(model: Entry) -> Widths:
    """What of a model has to divide."""
    dims = model.transformer
    return Widths(heads=dims.heads, hidden=dims.hidden, ffn=dims.ffn)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """The place of a process on every axis."""

    pipeline: int
    replicate: int
    shard: int
    ring: int
    ulysses: int
    tensor: int


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """The processes of a run on the axes of `kinema_api.layout.AXES`, outermost first.

    The processes of one data coordinate (`replicate`, `shard`) train on the same clips together: `ring` and `ulysses`
    share out the tokens, `tensor` the matrices. With `sequence` the tensor processes share out tokens too.
    """

    sizes: Sizes

    @classmethod
    def alone(cls) -> ParallelLayout:
        """One process."""
        return cls(Sizes())

    @classmethod
    def of(cls, layout: api.Layout, *, world: int, model: Widths) -> ParallelLayout:
        """The layout that settings ask for.

        Raises:
            StageError: it cannot work.
        """
        try:
            return cls(api.resolve(layout, world=world, model=model))
        except LayoutError as error:
            raise StageError(Exit.USER, f"stages.train.{error}") from None

    @property
    def world(self) -> int:
        """Processes."""
        return self.sizes.world

    @property
    def data(self) -> int:
        """Sets of processes with clips of their own."""
        return self.sizes.data

    @property
    def context(self) -> int:
        """Processes that share the tokens of a clip through ring and ulysses."""
        return self.sizes.ring * self.sizes.ulysses

    @property
    def token_parts(self) -> int:
        """Parts that each clip's tokens are cut into between the matrices."""
        return self.context * (self.sizes.tensor if self.sizes.sequence else 1)

    @property
    def cut(self) -> int:
        """Processes over which a parameter is cut, beside tensor; 1 where each has a whole copy."""
        return self.sizes.shard * self.context if self.sizes.shard > 1 else 1

    @property
    def copies(self) -> int:
        """Processes, or groups of `cut`, that hold the same part of a parameter."""
        return self.sizes.replicate if self.sizes.shard > 1 else self.sizes.replicate * self.context

    @property
    def alone_in(self) -> tuple[str, ...]:
        """Phases of a step in which a process waits for no other: a whole copy's forward pass, and the data."""
        return ("data", "forward") if self.world == self.sizes.replicate * self.sizes.pipeline else ("data",)

    def coordinates(self, rank: int) -> Coordinates:
        """The place of a process."""
        found: dict[str, int] = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, self.sizes.size(axis))
        return Coordinates(**found)

    def data_rank(self, rank: int) -> int:
        """Which of the `data` sets a process belongs to."""
        at = self.coordinates(rank)
        return at.replicate * self.sizes.shard + at.shard

    def token_part(self, rank: int) -> int:
        """Which of the `token_parts` a process has."""
        at, sizes = self.coordinates(rank), self.sizes
        part = at.ring * sizes.ulysses + at.ulysses
        return part * sizes.tensor + at.tensor if sizes.sequence else part

    def speaks(self, rank: int) -> bool:
        """Whether a process's part of the loss counts: without `sequence` the tensor processes all have the same."""
        return self.sizes.sequence or self.coordinates(rank).tensor == 0
