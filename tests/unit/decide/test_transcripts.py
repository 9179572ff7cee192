# SPDX-License-Identifier: Apache-2.0
"""Whole lives of jobs, compared line by line with what was decided about them before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.decide import lives, lives_of_policy
from tests.unit.decide.transcript import Told

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parent / "golden"
STORIES: dict[str, Callable[[], Told]] = {
    story.__name__.replace("_", "-"): story for story in (*lives.STORIES, *lives_of_policy.STORIES)
} | lives_of_policy.CLEANUPS


@pytest.mark.parametrize("name", STORIES)
def test_the_story_is_told_as_before(name: str) -> None:
    path = FOLDER / f"{name}.txt"
    text = STORIES[name]().text
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, "run UPDATE_GOLDEN=1 pytest tests/unit/decide and read the difference"


def test_every_file_belongs_to_a_story() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(STORIES)
