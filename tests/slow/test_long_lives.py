# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a run, every selected clip counts exactly once an epoch: more lives than the unit tests try."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.unit.trainer import test_course, test_lives

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@settings(deadline=None, max_examples=300)
@given(**test_lives.LIVES)
def test_every_selected_clip_counts_exactly_once_an_epoch(
    mode: str, count: int, window: int, lives: list[test_lives.Attempt]
) -> None:
    test_lives.every_clip_once(mode, count=count, window=window, lives=lives)


@settings(deadline=None, max_examples=1000)
@given(**test_course.LIVES)
def test_any_life_takes_every_clip_exactly_once_an_epoch(
    mode: str, clips: int, lives: list[dict[str, int]], window: int
) -> None:
    test_course.every_clip_once(mode, clips=clips, lives=lives, window=window)
