# SPDX-License-Identifier: Apache-2.0
"""What a training will take, told without a device: more layouts and settings than the unit tests rehearse."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity.test_planning import check_arithmetic, check_inferred, settings

pytestmark = pytest.mark.slow

CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], int]] = {
    "one process": (1, {"shard": 1}, {"precision": "fp32"}, 1),
    "copies": (4, {"replicate": 4, "shard": 1}, {"accumulate": 2}, 1),
    "everything again": (4, {}, {"recompute": {"mode": "full"}}, 4),
    "every other block again": (4, {}, {"recompute": {"mode": "interval", "every": 2}}, 2),
    "tensor": (2, {"tensor": 2}, {"precision": "fp32"}, 2),
    "ulysses": (4, {"ulysses": 4}, {"precision": "fp32"}, 4),
}
"""Processes, layout, other settings, clips."""


@pytest.mark.parametrize("name", CASES)
def test_arithmetic_from_dimensions_is_near_the_rehearsal(name: str) -> None:
    world, layout, more, clips = CASES[name]
    check_arithmetic(settings(layout, batchPerDevice=clips, **more), world=world, clips=clips)


@pytest.mark.parametrize(
    ("layout", "more"),
    [
        ({}, {}),
        ({"tensor": 2, "sequence": True}, {"recompute": {"mode": "interval", "every": 2}}),
    ],
    ids=["fsdp2", "tensor with sequence, every other block again"],
)
def test_blocks_that_are_inferred_are_as_those_that_are_rehearsed(layout: dict[str, Any], more: dict[str, Any]) -> None:
    check_inferred(settings(layout, **more), world=4, layers=12)
