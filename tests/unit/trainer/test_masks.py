# SPDX-License-Identifier: Apache-2.0
"""Which latent frames are given: shares, counts and places of each strategy."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from kinema_api.objective import Masks
from kinema_trainer.objectives.masks import clean_frames


def drawn(masks: Masks, *, frames: int, count: int = 400) -> list[tuple[bool, ...] | None]:
    """What the strategies give, sample by sample."""
    stream = torch.Generator().manual_seed(2)
    found: list[tuple[bool, ...] | None] = []
    for _ in range(count):
        clean = clean_frames(masks, frames=frames, numbers=torch.rand(3 + frames, generator=stream))
        found.append(None if clean is None else tuple(clean.tolist()))
    return found


def pattern(text: str) -> tuple[bool, ...]:
    """Given frames of a text: those with an x."""
    return tuple(letter == "x" for letter in text)


@pytest.mark.parametrize(
    ("name", "frames", "patterns"),
    [
        ("interpolate", 6, {"x.x.x."}),
        ("quarter_head", 8, {"x.......", "xx......"}),
        ("quarter_tail", 8, {".......x", "......xx"}),
        ("quarter_head_tail", 8, {"x......x", "xx....xx"}),
        ("image_head", 5, {"x...."}),
        ("image_tail", 5, {"....x"}),
        ("image_head_tail", 5, {"x...x"}),
        ("image_random", 3, {"x..", ".x.", "..x"}),
        ("quarter_head", 3, {"x.."}),
        ("interpolate", 2, {"x."}),
        ("image_head_tail", 2, {"x."}),
    ],
)
def test_strategies(name: str, frames: int, patterns: set[str]) -> None:
    found = set(drawn(Masks.model_validate({name: 1}), frames=frames))
    assert found == {pattern(text) for text in patterns}


def test_random_gives_a_tenth_to_nine_tenths_anywhere() -> None:
    found = [clean for clean in drawn(Masks(random=1), frames=20) if clean is not None]
    counts = {sum(clean) for clean in found}
    assert (min(counts), max(counts)) == (2, 18)
    places = Counter(index for clean in found for index, given in enumerate(clean) if given)
    assert min(places.values()) > 0.3 * len(found)
    assert max(places.values()) < 0.7 * len(found)


def test_quarter_random_gives_at_most_a_quarter_anywhere() -> None:
    found = [clean for clean in drawn(Masks(quarter_random=1), frames=12) if clean is not None]
    assert {sum(clean) for clean in found} == {1, 2, 3}
    assert {index for clean in found for index, given in enumerate(clean) if given} == set(range(12))


def test_shares() -> None:
    found = drawn(Masks(image_head=0.3, image_tail=0.5), frames=4, count=2000)
    counts = Counter(found)
    assert counts.keys() == {pattern("x..."), pattern("...x"), None}
    assert counts[pattern("x...")] == pytest.approx(600, abs=70)
    assert counts[pattern("...x")] == pytest.approx(1000, abs=70)


@pytest.mark.parametrize("name", sorted(Masks.model_fields))
def test_some_frame_stays_noisy_and_an_image_is_never_given(name: str) -> None:
    masks = Masks.model_validate({name: 1})
    for frames in range(2, 9):
        found = drawn(masks, frames=frames, count=60)
        assert all(clean is not None and any(clean) and not all(clean) for clean in found), frames
    assert set(drawn(masks, frames=1, count=20)) == {None}
