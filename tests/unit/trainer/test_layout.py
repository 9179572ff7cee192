# SPDX-License-Identifier: Apache-2.0
"""Which process has which part: coordinates, tokens."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from kinema_api.catalogue import entry
from kinema_api.exits import Exit, StageError
from kinema_api.layout import Layout, Sizes
from kinema_trainer.parallel.layout import ParallelLayout, widths
from kinema_trainer.parallel.sequence import Share, counts

LAYOUTS = [
    ParallelLayout(Sizes()),
    ParallelLayout(Sizes(replicate=2, shard=3)),
    ParallelLayout(Sizes(ring=3, ulysses=2)),
    ParallelLayout(Sizes(shard=2, tensor=2, ulysses=2, sequence=True)),
    ParallelLayout(Sizes(replicate=2, ring=2, ulysses=2, tensor=2, sequence=True)),
    ParallelLayout(Sizes(replicate=2, ring=2, tensor=2)),
]
LENGTHS = (17, 1, 64, 5)


def test_ranks_run_from_tensor_outwards() -> None:
    layout = ParallelLayout(Sizes(replicate=2, shard=2, ring=2, ulysses=2, tensor=2))
    places = [dataclasses.astuple(layout.coordinates(rank)) for rank in range(layout.world)]
    assert places == [(0, *rest) for rest in itertools.product(range(2), repeat=5)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_set_with_clips_of_its_own_has_as_many_processes(layout: ParallelLayout) -> None:
    sets = [layout.data_rank(rank) for rank in range(layout.world)]
    each = layout.world // layout.data
    assert sets == [number for number in range(layout.data) for _ in range(each)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_token_counts_once_in_each_set(layout: ParallelLayout) -> None:
    for number in range(layout.data):
        ranks = [rank for rank in range(layout.world) if layout.data_rank(rank) == number and layout.speaks(rank)]
        shares = [Share(LENGTHS, layout, rank) for rank in ranks]
        for sample, length in enumerate(LENGTHS):
            found = sorted(token for share in shares for token in range(*share.rows[sample]))
            assert found == list(range(length))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_processes_have_nearly_equal_work(layout: ParallelLayout) -> None:
    totals = [sum(counts(Share(LENGTHS, layout, rank).rows)) for rank in range(layout.world)]
    assert max(totals) - min(totals) <= len(LENGTHS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_pieces_of_an_axis_make_what_the_axis_gathers(layout: ParallelLayout) -> None:
    for rank in range(layout.world):
        share, at = Share(LENGTHS, layout, rank), layout.coordinates(rank)
        if layout.sizes.sequence:
            assert share.tensor.lengths[at.tensor] == counts(share.rows)
            assert share.tensor.samples == counts(share.inner)
        assert share.ulysses.lengths[at.ulysses] == counts(share.inner)
        assert share.ring.lengths[at.ring] == share.ulysses.samples
        assert share.ring.samples == LENGTHS


def test_merging_undoes_parting() -> None:
    pieces = Share(LENGTHS, LAYOUTS[2], 0).ring
    tokens = torch.arange(sum(LENGTHS))
    parts = pieces.parted(tokens)
    assert [len(part) for part in parts] == list(pieces.totals)
    assert torch.equal(pieces.merged(parts), tokens)


def test_a_refusal_names_the_setting() -> None:
    with pytest.raises(
        StageError, match=r"^stages.train.layout: 4 attention heads do not divide by tensor 3;"
    ) as caught:
        ParallelLayout.of(Layout(tensor=3), world=3, model=widths(entry("wan2.1-tiny")))
    assert caught.value.code is Exit.USER


@pytest.mark.parametrize(
    ("sizes", "cut", "copies"),
    [
        (Sizes(shard=4, ulysses=2), 8, 1),
        (Sizes(replicate=2, shard=2, ring=2), 4, 2),
        (Sizes(replicate=2, ring=2, ulysses=2), 1, 8),
        (Sizes(tensor=4), 1, 1),
    ],
)
def test_parameters_are_cut_over_shard_and_context_or_copied(sizes: Sizes, cut: int, copies: int) -> None:
    layout = ParallelLayout(sizes)
    assert (layout.cut, layout.copies) == (cut, copies)
    assert layout.cut * layout.copies * sizes.tensor == layout.world
