# SPDX-License-Identifier: Apache-2.0
"""The course of a run through its clips: a pure function of seed, settings and cost table.

Each epoch is a new permutation of the clips. It is cut into windows, and the clips of a window into packs; every clip
is in one pack of an epoch. Neither processes nor layout have a part in that: they only decide how many packs, one after
the other, make an optimizer step. A step may reach into the next epoch, so that none needs filling up.

A position counts clips from the start of the run. Packs take whole positions one after the other, so that a position
says where a run stands whatever the number of processes that brought it there, or that takes it on.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kinema_api.buckets import Bucket
from kinema_api.exits import Exit, StageError
from kinema_api.packing import Cost, Packing
from kinema_trainer.data.costs import Shape, Table
from kinema_trainer.data.packs import alike, balanced, dealt

PACKED, BATCHED = 1024, 65_536
"""Clips of a window: the more, the more evenly they pack, and the later a resumed run starts."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A clip at its place in the run."""

    sample: int
    """Its index in the features."""
    position: int
    """Decides all that is drawn for it; each occurs once in a run."""
    weight: float = 1.0
    """Its share in the loss beside the others'; 0 for a filler."""


@dataclass(frozen=True, slots=True)
class Pack:
    """The clips of one forward pass of one data coordinate."""

    slots: tuple[Slot, ...]
    lengths: tuple[int, ...]
    """Video tokens of each clip."""
    cost: float

    @property
    def tokens(self) -> int:
        """Video tokens."""
        return sum(self.lengths)

    @property
    def weight(self) -> float:
        """Of its clips together."""
        return sum(slot.weight for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Step:
    """The clips of one optimizer step."""

    start: int
    """Position before it."""
    consumed: int
    """Position after it."""
    passes: tuple[tuple[Pack, ...], ...]
    """By forward pass and data coordinate."""

    @property
    def packs(self) -> Iterable[Pack]:
        """All of them."""
        return itertools.chain.from_iterable(self.passes)

    @property
    def weight(self) -> float:
        """What the summed loss is divided by."""
        return sum(pack.weight for pack in self.packs)

    @property
    def samples(self) -> int:
        """Clips, fillers left out."""
        return self.consumed - self.start

    @property
    def tokens(self) -> int:
        """Video tokens."""
        return sum(pack.tokens for pack in self.packs)

    @property
    def imbalance(self) -> float:
        """Share of the step, by predicted cost, that the data coordinates wait for the slowest of each pass."""
        longest = sum(max(pack.cost for pack in packs) for packs in self.passes)
        mean = sum(sum(pack.cost for pack in packs) / len(packs) for packs in self.passes)
        return 1 - mean / longest if longest else 0.0


class Course:
    """What is trained on when.

    Args:
        table: the clips.
        seed: decides the order.
        batch: clips of a forward pass, where nothing is packed and no bucket says otherwise.
        packing: how packs are made; batches of equal shapes are when left out.
        batches: clips of a forward pass by shape, for shapes that differ from `batch`.

    Raises:
        StageError: there are no clips, or one does not fit into a pack.
    """

    def __init__(
        self,
        table: Table,
        *,
        seed: int,
        batch: int = 1,
        packing: Packing | None = None,
        batches: Mapping[Shape, int] | None = None,
    ) -> None:
        if not len(table):
            raise StageError(Exit.DATA, "no clips are left to train on: see what prepare and features left out")
        self.table = table
        self._seed = seed
        self._packing = packing
        self._shapes = tuple(sorted(set(table.shapes)))
        self._batches = {shape: (batches or {}).get(shape, batch) for shape in self._shapes}
        self._check()
        size = PACKED if packing is not None else BATCHED
        self._windows = max(1, len(table) // size)
        self._permutation = lru_cache(maxsize=2)(self._permute)
        self._window = lru_cache(maxsize=4)(self._cut)
        self._starts = lru_cache(maxsize=4)(self._begin)

    def _check(self) -> None:
        if self._packing is None:
            return
        longest = int(self.table.tokens.argmax())
        need = int(self.table.tokens[longest])
        if need > self._packing.tokens:
            raise StageError(
                Exit.USER,
                f"stages.train.packing.tokens: clip {self.table.keys[longest]} has {need} tokens (latents of shape"
                f" {list(self.table.shapes[longest])}), a pack at most {self._packing.tokens}; raise it to {need} or"
                " more",
            )

    @property
    def size(self) -> int:
        """Clips of an epoch."""
        return len(self.table)

    @cached_property
    def _frozen(self) -> dict[str, Any]:
        uniform = self._uniform
        return {
            "clips": self.size,
            "table": self.table.digest,
            "seed": self._seed,
            "cost": self.table.cost.wire(),
            "packing": self._packing.tokens if self._packing is not None else None,
            # Batches of one shape have no borders of their own: another size goes on anywhere.
            "batches": None if uniform else [[list(shape), self._batches[shape]] for shape in self._shapes],
            "beginning": self._beginning,
        }

    def frozen(self) -> dict[str, Any]:
        """What a checkpoint keeps of the course: whoever goes on must have the same."""
        return dict(self._frozen)

    def check(self, frozen: Mapping[str, Any]) -> None:
        """Refuse to go on from a checkpoint of another course.

        Raises:
            StageError: it says which part differs.
        """
        words = {
            "clips": "the number of clips",
            "table": "the clips, or what they cost",
            "seed": "stages.train.seed",
            "packing": "stages.train.packing.tokens",
            "batches": "the batches of the buckets",
            "beginning": "the order or the packs that follow from all this, by another version of the image",
        }
        mine = self._frozen
        for name, what in words.items():
            if name in frozen and frozen[name] != mine[name]:
                raise StageError(
                    Exit.USER,
                    f"the checkpoint was written with another value of {what} ({frozen[name]}, now {mine[name]}):"
                    " clips would be left out or repeated; give the run another name, or undo the change",
                )

    @property
    def _beginning(self) -> str:
        """A digest of how the first epoch begins: another library that drew or packed otherwise would show in it."""
        rows = self._permutation(0)[: self._border(1)].tolist()
        packs = [] if self._uniform else [[slot.position for slot in pack.slots] for pack in self._window(0, 0)]
        return hashlib.sha256(repr((rows, packs)).encode()).hexdigest()[:20]

    @property
    def _uniform(self) -> bool:
        return self._packing is None and len(self._shapes) == 1

    def step(self, start: int, *, passes: int, width: int) -> Step:
        """The optimizer step that begins at a position.

        Args:
            start: the position; 0, or where another step ended.
            passes: forward passes of the step.
            width: data coordinates.
        """
        packs = list(itertools.islice(self.packs(start), passes * width))
        rows = dealt([pack.cost for pack in packs], passes=passes, width=width)
        return Step(
            start=start,
            consumed=start + sum(len(pack.slots) for pack in packs),
            passes=tuple(tuple(packs[index] for index in row) for row in rows),
        )

    def packs(self, start: int) -> Iterator[Pack]:
        """The packs from a position on, without end.

        Raises:
            StageError: no pack begins there.
        """
        if self._uniform:
            batch = self._batches[self._shapes[0]]
            for first in itertools.count(start, batch):
                yield self._pack(range(first, first + batch))
        epoch, place = divmod(start, self.size)
        window = self._window_of(place)
        yield from self._from(epoch, window, start)
        while True:
            epoch, window = (epoch, window + 1) if window + 1 < self._windows else (epoch + 1, 0)
            yield from self._window(epoch, window)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The clips of an epoch in their order, as rows of the table."""
        return self._permutation(epoch)

    def _from(self, epoch: int, window: int, start: int) -> Iterator[Pack]:
        """The packs of a window from a position on."""
        packs, starts = self._window(epoch, window), self._starts(epoch, window)
        first = bisect.bisect_left(starts, start)
        if first < len(starts) and starts[first] != start:
            raise StageError(
                Exit.USER,
                f"position {start} lies within a pack: the checkpoint was written with other packs or batches;"
                " give the run another name, or undo the change",
            )
        yield from packs[first:]

    def _border(self, window: int) -> int:
        return window * self.size // self._windows

    def _window_of(self, place: int) -> int:
        window = place * self._windows // self.size
        while self._border(window + 1) <= place:
            window += 1
        return window

    def _cut(self, epoch: int, window: int) -> tuple[Pack, ...]:
        """The packs of a window."""
        first, last = self._border(window), self._border(window + 1)
        rows = self._permutation(epoch)[first:last]
        if self._packing is not None:
            groups = balanced(
                self.table.tokens[rows].tolist(), self.table.costs[rows].tolist(), budget=self._packing.tokens
            )
        else:
            groups = alike([self.table.shapes[row] for row in rows], self._batches)
        start = epoch * self.size + first
        return tuple(self._pack(start + place for place in group) for group in groups)

    def _begin(self, epoch: int, window: int) -> tuple[int, ...]:
        """The position at which each pack of a window begins, and the one at which the last ends."""
        counts = (len(pack.slots) for pack in self._window(epoch, window))
        return tuple(itertools.accumulate(counts, initial=epoch * self.size + self._border(window)))

    def _pack(self, positions: Iterable[int]) -> Pack:
        slots: list[Slot] = []
        lengths: list[int] = []
        cost = 0.0
        for position in positions:
            epoch, place = divmod(position, self.size)
            row = int(self._permutation(epoch)[place])
            slots.append(Slot(sample=int(self.table.places[row]), position=position))
            lengths.append(int(self.table.tokens[row]))
            cost += float(self.table.costs[row])
        return Pack(slots=tuple(slots), lengths=tuple(lengths), cost=cost)

    def _permute(self, epoch: int) -> npt.NDArray[np.int64]:
        digest = hashlib.blake2b(struct.pack("<qq", self._seed, epoch), digest_size=8, person=b"kinema-order").digest()
        stream = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        order: npt.NDArray[np.int64] = torch.randperm(self.size, generator=stream).numpy()
        return order


def batches_of(buckets: Iterable[Bucket], *, channels: int, temporal: int, spatial: int) -> dict[Shape, int]:
    """Clips of a forward pass by the shape of their latents."""
    return {
        (
            channels,
            (bucket.frames - 1) // temporal + 1,
            bucket.height // spatial,
            bucket.width // spatial,
        ): bucket.batch
        for bucket in buckets
    }


def cost_of(frozen: Mapping[str, Any] | None, *, packing: Packing | None, predicted: Cost) -> Cost:
    """What a clip costs in a run: as its first checkpoint froze it, else as the settings say, else as predicted."""
    if frozen is not None and "cost" in frozen:
        return Cost.stored(frozen["cost"])
    if packing is not None and packing.cost is not None:
        return packing.cost
    return predicted
