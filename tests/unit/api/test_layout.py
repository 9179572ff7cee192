# SPDX-License-Identifier: Apache-2.0
"""What a layout comes to, what is refused, and which layout is named instead."""

from __future__ import annotations

import time

import pytest

from kinema_api.layout import Layout, LayoutError, Sizes, Widths, fault, nearest, resolve

SMALL = Widths(heads=12, hidden=1536, ffn=8960)


def layout(**axes: object) -> Layout:
    return Layout.model_validate(axes)


@pytest.mark.parametrize(
    ("asked", "world", "found"),
    [
        ({}, 8, Sizes(shard=8)),
        ({}, 1, Sizes()),
        ({"replicate": 2}, 8, Sizes(replicate=2, shard=4)),
        ({"replicate": 8, "shard": 1}, 8, Sizes(replicate=8)),
        ({"tensor": 4, "sequence": True}, 8, Sizes(shard=2, tensor=4, sequence=True)),
        ({"ulysses": 3, "ring": 2}, 12, Sizes(shard=2, ulysses=3, ring=2)),
        ({"tensor": 4}, 4, Sizes(tensor=4)),
    ],
)
def test_shard_takes_what_the_others_leave(asked: dict[str, object], world: int, found: Sizes) -> None:
    assert resolve(layout(**asked), world=world, model=SMALL) == found
    assert found.world == world


@pytest.mark.parametrize(
    ("asked", "world", "why", "instead"),
    [
        ({"shard": 3}, 8, "shard 3 makes 3 processes, and there are 8", "replicate 2, shard 4"),
        ({"shard": 1}, 8, "shard 1 makes 1 processes, and there are 8", "replicate 8, shard 1"),
        ({"tensor": 3, "shard": 2}, 8, "shard 2 x tensor 3 makes 6", "shard 2, tensor 4"),
        ({"replicate": 8}, 8, "a shard axis of 1", "replicate 4, shard 2"),
        ({"tensor": 8}, 8, "12 attention heads do not divide by tensor 8", "shard 2, tensor 4"),
        ({"ulysses": 16}, 16, "ulysses 16 is more than 12 attention heads", "shard 4, ulysses 4"),
        ({"tensor": 4, "ulysses": 4}, 16, "more than the 3 heads that tensor 4 leaves", "shard 4, tensor 4"),
        ({"tensor": 2, "ulysses": 4}, 8, "12 attention heads do not divide by tensor 2 x ulysses 4", "tensor"),
        ({"sequence": True}, 8, "tensor is 1", "shard 8"),
    ],
)
def test_a_layout_that_cannot_work_is_refused_in_a_sentence(
    asked: dict[str, object], world: int, why: str, instead: str
) -> None:
    with pytest.raises(LayoutError) as caught:
        resolve(layout(**asked), world=world, model=SMALL)
    said = str(caught.value)
    assert why in said
    assert said.startswith("layout: ")
    assert instead in said.split("the nearest layout that works: ")[1]
    assert "\n" not in said


def test_widths_that_do_not_divide_are_named() -> None:
    odd = Widths(heads=8, hidden=100, ffn=96)
    with pytest.raises(LayoutError, match="a hidden width of 100 does not divide by tensor 8"):
        resolve(layout(tensor=8), world=8, model=odd)
    with pytest.raises(LayoutError, match="a ffn width of 90 does not divide by tensor 4"):
        resolve(layout(tensor=4), world=4, model=Widths(heads=8, hidden=64, ffn=90))


def test_pipeline_is_reserved() -> None:
    assert "reserved" in str(fault(Sizes(pipeline=2), SMALL))


@pytest.mark.parametrize("world", [1, 2, 6, 8, 48, 512, 6400])
def test_there_is_always_a_layout_that_works_and_it_is_found_at_once(world: int) -> None:
    began = time.monotonic()
    for asked in (layout(tensor=64), layout(ulysses=64, ring=7), layout(replicate=5, tensor=3, sequence=True)):
        found = nearest(asked, world=world, model=SMALL)
        assert found.world == world
        assert fault(found, SMALL) is None
    assert time.monotonic() - began < 5
