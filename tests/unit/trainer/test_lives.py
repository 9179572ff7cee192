# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a run, every selected clip counts exactly once an epoch, in the order of seed and epoch.

A life is any sequence of attempts: each is killed at any moment, goes on from the last checkpoint with any number of
processes in any layout and of loader threads, and saves after every so many steps. Every process has a loader of its
own; what the processes of one data coordinate read must be the same, and what all coordinates read together the course.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema_api.layout import Sizes
from kinema_api.objective import Objective
from kinema_api.packing import Cost, Packing
from kinema_trainer.batch import Example
from kinema_trainer.data import course as module
from kinema_trainer.data.costs import Shape, Table
from kinema_trainer.data.course import Course
from kinema_trainer.data.reader import Loader, Split
from kinema_trainer.data.shards import Sample
from kinema_trainer.parallel.layout import ParallelLayout

pytestmark = pytest.mark.unit

SEED = 11
COST = Cost(quadratic=0.02, linear=1.0)
SHAPES: list[Shape] = [(2, 1, 2, 2), (2, 2, 4, 2), (2, 4, 4, 4)]
"""1, 4 and 16 tokens."""


class Clips(Sequence[Sample]):
    """Clips in memory."""

    def __init__(self, count: int, *, mode: str) -> None:
        stream = torch.Generator().manual_seed(count)
        shapes = [SHAPES[1 if mode == "uniform" else number * 5 % 3] for number in range(count)]
        self.samples = [
            Sample(key=f"clip-{number}", latents=torch.randn(shape, generator=stream), text=torch.ones(2, 3))
            for number, shape in enumerate(shapes)
        ]
        keys = [sample.key for sample in self.samples]
        # The first clip of five is held out.
        selected = [number for number in range(count) if number % 5 or count < 5]
        self.table = Table.of(keys, shapes, patch=(1, 2, 2), cost=COST, selected=selected)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.samples[index]


def course(clips: Clips, mode: str) -> Course:
    if mode == "packed":
        return Course(clips.table, seed=SEED, packing=Packing(tokens=20))
    return Course(clips.table, seed=SEED, batch=3, batches={SHAPES[0]: 4})


@dataclass(frozen=True)
class Attempt:
    """One attempt: what it is made of, and when it is killed."""

    sizes: Sizes
    accumulate: int
    workers: int
    ahead: int
    every: int
    steps: int
    """Whole steps before it is killed; the one it is killed in counts for nothing."""


class Life:
    """What the checkpoints of a run hold."""

    def __init__(self, clips: Clips, mode: str) -> None:
        self._clips, self._mode = clips, mode
        self.consumed = 0
        self.frozen: dict[str, Any] | None = None
        self.trained: dict[int, Example] = {}
        """What the weights in the last checkpoint have seen, by position."""

    def live(self, attempt: Attempt) -> None:
        layout = ParallelLayout(attempt.sizes)
        ranks = range(layout.world)
        loaders = [self._loader(layout, rank, attempt) for rank in ranks]
        at = self.consumed
        unsaved: dict[int, Example] = {}
        for number in range(1, attempt.steps + 1):
            for rank in ranks:
                for position, example in self._step(loaders[rank], layout.data_rank(rank), at, attempt):
                    first = unsaved.setdefault(position, example)
                    assert first.key == example.key and torch.equal(first.noise, example.noise)
            plan = loaders[0].step(at)
            assert len(unsaved.keys() - self.trained.keys()) == plan.consumed - self.consumed
            at = plan.consumed
            if number % attempt.every == 0:
                assert not self.trained.keys() & unsaved.keys(), "a clip was trained on twice"
                self.trained |= unsaved
                self.consumed, unsaved = at, {}
                self.frozen = json.loads(json.dumps(loaders[0].course.frozen()))
        for one in loaders:
            one.close()

    def _loader(self, layout: ParallelLayout, rank: int, attempt: Attempt) -> Loader:
        made = course(self._clips, self._mode)
        if self.frozen is not None:
            made.check(self.frozen)
        return Loader(
            self._clips,
            course=made,
            empty_text=torch.zeros(1, 3),
            text_length=2,
            objective=Objective(),
            seed=SEED,
            split=Split(rank=layout.data_rank(rank), world=layout.data, accumulate=attempt.accumulate),
            workers=attempt.workers,
            ahead=attempt.ahead,
        )

    def _step(self, loader: Loader, rank: int, start: int, attempt: Attempt) -> list[tuple[int, Example]]:
        """What one process reads for a step."""
        found: list[tuple[int, Example]] = []
        for micro in range(attempt.accumulate):
            slots = loader.step(start).passes[micro][rank].slots
            batch = loader.batch(start=start, micro=micro)
            assert [example.key for example in batch] == [self._clips[slot.sample].key for slot in slots]
            assert all(example.weight == 1 for example in batch)
            found += [(slot.position, example) for slot, example in zip(slots, batch, strict=True)]
        return found


def axis() -> st.SearchStrategy[int]:
    return st.sampled_from([1, 1, 2])


layouts = st.builds(Sizes, replicate=axis(), shard=axis(), ring=axis(), ulysses=axis(), tensor=axis())
attempts = st.builds(
    Attempt,
    sizes=layouts.filter(lambda sizes: sizes.world <= 8),
    accumulate=st.integers(1, 3),
    workers=st.integers(1, 4),
    ahead=st.integers(0, 5),
    every=st.integers(1, 3),
    steps=st.integers(0, 5),
)


LIVES: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(["packed", "bucketed", "uniform"]),
    "count": st.integers(1, 30),
    "window": st.integers(3, 40),
    "lives": st.lists(attempts, min_size=1, max_size=6),
}
"""Any life; `tests/slow` tries many more of them."""


@settings(deadline=None, max_examples=8)
@given(**LIVES)
def test_every_selected_clip_counts_exactly_once_an_epoch(
    mode: str, count: int, window: int, lives: list[Attempt]
) -> None:
    every_clip_once(mode, count=count, window=window, lives=lives)


def every_clip_once(mode: str, *, count: int, window: int, lives: list[Attempt]) -> None:
    """Live, and compare with an undisturbed course."""
    clips = Clips(count, mode=mode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PACKED", window)
        patch.setattr(module, "BATCHED", window)
        life = Life(clips, mode)
        for attempt in lives:
            life.live(attempt)
        undisturbed = course(clips, mode)
        packs = undisturbed.packs(0)
        expected: list[int] = []
        while len(expected) < life.consumed:
            expected += [slot.position for slot in next(packs).slots]
    assert sorted(life.trained) == sorted(expected)
    size = len(clips.table)
    for epoch in range(life.consumed // size):
        keys = Counter(life.trained[position].key for position in range(epoch * size, (epoch + 1) * size))
        assert keys == Counter(clips.table.keys)
        order = [clips[int(clips.table.places[row])].key for row in undisturbed.order(epoch)]
        assert [life.trained[epoch * size + place].key for place in range(size)] == order
