# SPDX-License-Identifier: Apache-2.0
"""The order of samples, and how processes share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from kinema_api.exits import Exit, StageError
from kinema_api.settings import Objective
from kinema_trainer.data import Batch, Cache, Loader, Order, Split, pad
from kinema_trainer.shards import Sample


class Samples(Sequence[Sample]):
    """Clips in memory that count how often they are read."""

    def __init__(self, count: int) -> None:
        stream = torch.Generator().manual_seed(3)
        self.reads: list[int] = []
        self._samples = [
            Sample(
                key=str(index),
                latents=torch.randn((4, 1, 2, 2), generator=stream),
                text=torch.randn((2, 3), generator=stream),
            )
            for index in range(count)
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        self.reads.append(index)
        return self._samples[index]


def loader(samples: Samples, split: Split, *, dropout: float = 0.0) -> Loader:
    return Loader(
        samples,
        empty_text=torch.full((1, 3), 9.0),
        text_length=5,
        objective=Objective(caption_dropout=dropout),
        split=split,
        seed=4,
    )


def batches(samples: Samples, *, world: int, batch: int, accumulate: int, steps: int) -> Iterator[dict[int, Batch]]:
    """For each step the batches of all processes by position."""
    splits = [Split(rank=rank, world=world, batch=batch, accumulate=accumulate) for rank in range(world)]
    loaders = [loader(samples, split) for split in splits]
    for step in range(steps):
        found: dict[int, Batch] = {}
        for split, one in zip(splits, loaders, strict=True):
            for micro in range(accumulate):
                positions = split.positions(start=step * split.step, micro=micro)
                made = one.batch(start=step * split.step, micro=micro)
                for index, position in enumerate(positions):
                    assert position not in found
                    found[position] = Batch(made.latents[index], made.noise[index], made.sigma[index], made.text[index])
        yield found
    for one in loaders:
        one.close()


def test_every_epoch_is_another_permutation() -> None:
    order = Order(size=7, seed=1)
    epochs = [[order.sample(7 * epoch + place) for place in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [Order(size=7, seed=1).sample(position) for position in (20, 3)] == [epochs[2][6], epochs[0][3]]
    assert epochs[0] != [Order(size=7, seed=2).sample(place) for place in range(7)]


@pytest.mark.parametrize(("world", "batch", "accumulate"), [(1, 4, 1), (2, 2, 1), (4, 1, 1), (1, 1, 4), (2, 1, 2)])
def test_a_step_takes_the_same_samples_however_it_is_shared(world: int, batch: int, accumulate: int) -> None:
    # Three clips: the epoch is smaller than the step, so that it wraps within one.
    whole = list(batches(Samples(3), world=1, batch=4, accumulate=1, steps=3))
    shared = list(batches(Samples(3), world=world, batch=batch, accumulate=accumulate, steps=3))
    for one, other in zip(whole, shared, strict=True):
        assert one.keys() == other.keys()
        for position, sample in one.items():
            assert torch.equal(sample.noise, other[position].noise)
            assert torch.equal(sample.latents, other[position].latents)
            assert torch.equal(sample.sigma, other[position].sigma)
            assert torch.equal(sample.text, other[position].text)


def test_captions_are_padded_with_zeros_and_cut() -> None:
    text = torch.ones(3, 2)
    assert pad(text, length=5).tolist() == [[1, 1]] * 3 + [[0, 0]] * 2
    assert pad(text, length=2).tolist() == [[1, 1]] * 2


def test_a_dropped_caption_becomes_the_empty_one() -> None:
    one = loader(Samples(2), Split(rank=0, world=1, batch=2, accumulate=1), dropout=1.0)
    assert one.batch(start=0, micro=0).text.tolist() == [[[9, 9, 9]] + [[0, 0, 0]] * 4] * 2
    one.close()


def test_the_cache_keeps_what_fits() -> None:
    samples = Samples(3)
    size = samples[0].latents.nbytes + samples[0].text.nbytes
    samples.reads.clear()
    cache = Cache(samples, limit=2 * size)
    for index in (0, 1, 0, 1, 2, 1, 0):
        assert cache[index].key == str(index)
    assert samples.reads == [0, 1, 2, 0]


def test_an_empty_artifact_is_a_fault_of_the_data() -> None:
    with pytest.raises(StageError, match="no clips") as caught:
        loader(Samples(0), Split(rank=0, world=1, batch=1, accumulate=1))
    assert caught.value.code is Exit.DATA


def test_clips_of_several_shapes_are_refused() -> None:
    samples = Samples(2)
    samples._samples[1] = Sample(key="odd", latents=torch.zeros(4, 1, 2, 4), text=torch.zeros(1, 3))
    one = loader(samples, Split(rank=0, world=1, batch=2, accumulate=1))
    with pytest.raises(StageError, match="clip odd has latents of shape"):
        one.batch(start=0, micro=0)
    one.close()
