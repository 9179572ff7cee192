# SPDX-License-Identifier: Apache-2.0
"""What a clip costs: predicted by its operations, or fitted to measured times."""

from __future__ import annotations

import numpy as np
import pytest

from kinema_api.catalogue import entry, model_names
from kinema_api.packing import Cost
from kinema_trainer.data.costs import Measured, Table, predicted, tokens
from kinema_trainer.models import adapter

pytestmark = pytest.mark.unit


def test_tokens_follow_from_the_shape() -> None:
    assert tokens((16, 21, 60, 104), patch=(1, 2, 2)) == 32_760


@pytest.mark.parametrize("shape", [(16, 1, 60, 104), (16, 21, 60, 104), (16, 21, 90, 160)])
@pytest.mark.parametrize("name", model_names())
def test_the_predicted_cost_is_that_of_the_operations(name: str, shape: tuple[int, int, int, int]) -> None:
    model = entry(name)
    cost = predicted(model).of(tokens(shape, patch=model.transformer.patch))
    assert 1e12 * cost == pytest.approx(adapter(model).flops(model, shape).total, rel=1e-9)


@pytest.mark.parametrize(
    "true",
    [Cost(quadratic=3e-8, linear=2e-5, clip=0.01), Cost(quadratic=0, linear=1e-5), Cost(quadratic=1e-8, linear=0)],
)
def test_measured_times_give_the_cost_back(true: Cost) -> None:
    random = np.random.default_rng(0)
    measured = Measured()
    assert measured.fit() is None
    for _ in range(60):
        clips = [int(value) for value in 1000 * 8 ** random.random(int(random.integers(1, 6)))]
        measured.add(clips, seconds=sum(true.of(count) for count in clips) * float(random.normal(1, 0.01)))
    found = measured.fit()
    assert found is not None
    for count in (1000, 3000, 8000):
        assert found.of(count) == pytest.approx(true.of(count), rel=0.05)


def test_clips_of_one_length_give_no_negative_terms() -> None:
    measured = Measured()
    for seconds in (1.0, 1.1, 0.9, 1.0, 1.0, 1.0, 1.05):
        measured.add([100, 100], seconds=seconds)
    found = measured.fit()
    assert found is not None
    assert min(found.quadratic, found.linear, found.clip) >= 0
    assert found.of(100) == pytest.approx(0.5, rel=0.1)


def test_a_table_knows_what_decides_it() -> None:
    keys, shapes = ["a", "b", "c"], [(16, 1, 4, 4), (16, 2, 4, 4), (16, 1, 4, 8)]

    def table(cost: Cost, selected: list[int] | None = None) -> Table:
        return Table.of(keys, shapes, patch=(1, 2, 2), cost=cost, selected=selected)

    cost = Cost(quadratic=1, linear=2, clip=3)
    one = table(cost)
    assert one.tokens.tolist() == [4, 8, 8]
    assert one.costs.tolist() == [16 + 8 + 3, 64 + 16 + 3, 64 + 16 + 3]
    assert table(cost).digest == one.digest
    assert table(cost, [0, 2]).places.tolist() == [0, 2]
    assert len({one.digest, table(cost, [0, 2]).digest, table(Cost(quadratic=1, linear=2)).digest}) == 3
