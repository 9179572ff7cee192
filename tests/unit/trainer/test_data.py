# SPDX-License-Identifier: Apache-2.0
"""The batches of a process: the same whoever reads them, and how."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kinema_api.objective import Objective
from kinema_api.packing import Cost, Packing
from kinema_trainer.batch import Batch, Example
from kinema_trainer.data.costs import Table
from kinema_trainer.data.course import Course
from kinema_trainer.data.reader import Cache, Loader, Split, pad
from kinema_trainer.data.shards import Sample

pytestmark = pytest.mark.unit

COST = Cost(quadratic=0.01, linear=1.0)


class Samples(Sequence[Sample]):
    """Clips of several lengths in memory that count how often they are read."""

    def __init__(self, count: int, *, fail: int | None = None) -> None:
        stream = torch.Generator().manual_seed(3)
        self.reads: list[int] = []
        self._fail = fail
        self._samples = [
            Sample(
                key=str(index),
                latents=torch.randn((4, 1 + index % 3, 2, 2), generator=stream),
                text=torch.randn((2, 3), generator=stream),
            )
            for index in range(count)
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if index == self._fail:
            raise OSError("the volume is gone")
        self.reads.append(index)
        return self._samples[index]

    def course(self) -> Course:
        shapes = [tuple(sample.latents.shape) for sample in self._samples]
        keys = [sample.key for sample in self._samples]
        table = Table.of(keys, shapes, patch=(1, 2, 2), cost=COST)  # type: ignore[arg-type]
        return Course(table, seed=4, packing=Packing(tokens=5))


def loader(samples: Samples, *, dropout: float = 0.0, split: Split | None = None, **options: int) -> Loader:
    return Loader(
        samples,
        course=samples.course(),
        empty_text=torch.full((1, 3), 9.0),
        text_length=5,
        objective=Objective(caption_dropout=dropout),
        seed=4,
        split=split or Split(),
        **options,
    )


def drawn(samples: Samples, *, width: int, passes: int, clips: int, **options: int) -> dict[int, Example]:
    """What is drawn for each position, taken by all data coordinates together."""
    loaders = [
        loader(samples, split=Split(rank=rank, world=width, accumulate=passes), **options) for rank in range(width)
    ]
    found: dict[int, Example] = {}
    start = 0
    while start < clips:
        for rank, one in enumerate(loaders):
            for micro in range(passes):
                slots = one.step(start).passes[micro][rank].slots
                batch = one.batch(start=start, micro=micro)
                for slot, example in zip(slots, batch, strict=True):
                    assert slot.position not in found
                    found[slot.position] = example
        start = loaders[0].step(start).consumed
    for one in loaders:
        one.close()
    return found


def same(one: Example, other: Example) -> bool:
    parts = ("latents", "noise", "sigma", "text")
    return one.key == other.key and all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


@pytest.mark.parametrize(
    ("width", "passes", "workers", "ahead"), [(1, 1, 8, 9), (2, 1, 1, 1), (4, 2, 3, 2), (1, 3, 2, 0)]
)
def test_a_clip_is_the_same_whoever_reads_it(width: int, passes: int, workers: int, ahead: int) -> None:
    whole = drawn(Samples(11), width=1, passes=1, clips=44, workers=1, ahead=1)
    shared = drawn(Samples(11), width=width, passes=passes, clips=44, workers=workers, ahead=ahead)
    common = whole.keys() & shared.keys()
    assert common >= set(range(40))
    assert all(same(whole[position], shared[position]) for position in common)


def test_a_loader_may_be_asked_for_any_step() -> None:
    one, other = loader(Samples(11)), loader(Samples(11))
    starts = [0]
    for _ in range(6):
        starts.append(one.step(starts[-1]).consumed)
    inorder = [one.batch(start=start, micro=0) for start in starts]
    for index in (4, 2, 3, 0):
        assert equal(other.batch(start=starts[index], micro=0), inorder[index])
    one.close()
    other.close()


def equal(one: Batch, other: Batch) -> bool:
    return len(one) == len(other) and all(same(left, right) for left, right in zip(one, other, strict=True))


def test_the_next_passes_are_read_while_the_loop_computes() -> None:
    samples = Samples(11)
    one = loader(samples, ahead=3)
    first = one.step(0)
    one.batch(start=0, micro=0)
    second = one.step(first.consumed)
    wanted = {slot.sample for step in (first, second) for pack in step.packs for slot in pack.slots}
    one.close()
    one.batch  # noqa: B018 - the pool has ended what it had begun
    assert wanted <= set(samples.reads)


def test_a_fault_reaches_whoever_asks_for_the_clip() -> None:
    one = loader(Samples(11, fail=5), ahead=6)
    start, failed = 0, False
    while not failed and start < 11:
        step = one.step(start)
        holds = any(slot.sample == 5 for pack in step.packs for slot in pack.slots)
        if holds:
            with pytest.raises(OSError, match="the volume is gone"):
                one.batch(start=start, micro=0)
            failed = True
        else:
            one.batch(start=start, micro=0)
        start = step.consumed
    assert failed
    one.close()


def test_captions_are_padded_with_zeros_and_cut() -> None:
    text = torch.ones(3, 2)
    assert pad(text, length=5).tolist() == [[1, 1]] * 3 + [[0, 0]] * 2
    assert pad(text, length=2).tolist() == [[1, 1]] * 2


def test_a_dropped_caption_becomes_the_empty_one() -> None:
    one = loader(Samples(2), dropout=1.0)
    for example in one.batch(start=0, micro=0):
        assert example.text.tolist() == [[9, 9, 9]] + [[0, 0, 0]] * 4
    one.close()


def test_the_cache_keeps_what_fits() -> None:
    samples = Samples(9)
    size = samples[0].latents.nbytes + samples[0].text.nbytes
    samples.reads.clear()
    cache = Cache(samples, limit=2 * size)
    for index in (0, 3, 0, 3, 6, 3, 0):
        assert cache[index].key == str(index)
    assert samples.reads == [0, 3, 6, 0]
