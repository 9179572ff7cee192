# SPDX-License-Identifier: Apache-2.0
"""Packs and batches: every clip once, within the budget, equal in cost."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema_api.packing import Cost
from kinema_trainer.data.packs import alike, balanced, dealt

pytestmark = pytest.mark.unit

COST = Cost(quadratic=1e-3, linear=1.0)


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 400))
def test_every_clip_is_in_one_pack_within_the_budget(tokens: list[int], budget: int) -> None:
    packs = balanced(tokens, [COST.of(count) for count in tokens], budget=budget)
    assert sorted(place for pack in packs for place in pack) == list(range(len(tokens)))
    assert all(sum(tokens[place] for place in pack) <= budget for pack in packs)
    assert all(pack == sorted(pack) for pack in packs)
    assert [pack[0] for pack in packs] == sorted(pack[0] for pack in packs)


def log_uniform(count: int) -> list[int]:
    """Lengths over 1:8, each octave as often."""
    return [round(100 * 8 ** (place * 0.618 % 1)) for place in range(count)]


def test_packs_cost_the_same_not_hold_the_same() -> None:
    tokens = log_uniform(512)
    cost = Cost(quadratic=0.01, linear=1.0)
    costs = [cost.of(count) for count in tokens]
    packs = balanced(tokens, costs, budget=1600)
    sums = [sum(costs[place] for place in pack) for pack in packs]
    fills = [sum(tokens[place] for place in pack) for pack in packs]
    # The mean over the largest: what of the devices' time is used when all wait for the slowest.
    assert sum(sums) / len(sums) / max(sums) > 0.97
    assert sum(fills) / len(fills) / max(fills) < 0.95
    assert len(packs) <= math.ceil(1.15 * sum(tokens) / 1600)


def test_a_clip_that_fills_a_pack_is_alone() -> None:
    assert balanced([10, 3, 7, 10], [10, 3, 7, 10], budget=10) == [[0], [1, 2], [3]]
    assert balanced([], [], budget=10) == []


def test_a_clip_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a clip of 11 tokens does not fit into a pack of 10"):
        balanced([3, 11], [3, 11], budget=10)


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_batches_hold_one_group_each(groups: list[str], a: int, b: int) -> None:
    sizes = {"a": a, "b": b, "c": 1}
    batches = alike(groups, sizes)
    assert sorted(place for batch in batches for place in batch) == list(range(len(groups)))
    for name, size in sizes.items():
        own = [batch for batch in batches if groups[batch[0]] == name]
        assert all({groups[place] for place in batch} == {name} for batch in own)
        assert len(own) == math.ceil(groups.count(name) / size)
        assert all(len(batch) == size for batch in own[:-1])


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_passes_run_packs_of_like_cost(passes: int, width: int, data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.floats(1, 100), min_size=passes * width, max_size=passes * width))
    rows = dealt(costs, passes=passes, width=width)
    assert sorted(pack for row in rows for pack in row) == list(range(passes * width))
    for before, after in itertools.pairwise(rows):
        assert min(costs[pack] for pack in before) >= max(costs[pack] for pack in after)


def test_the_dearest_of_each_pass_is_another_coordinate() -> None:
    assert dealt([4, 3, 2, 1], passes=2, width=2) == [[0, 1], [3, 2]]
