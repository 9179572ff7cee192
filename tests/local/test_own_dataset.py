# SPDX-License-Identifier: Apache-2.0
"""The guide to a dataset of one's own, done as it says; and the videos that the quick start draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests import documents
from tests.documents import Reader

pytestmark = pytest.mark.timeout(300)


def draw(folder: Path) -> None:
    """Run the quick start's script."""
    script = documents.read(documents.QUICK_START).file("draw.py")
    for _ in range(2):  # again: nothing to do
        subprocess.run([sys.executable, "-", str(folder)], input=script, text=True, check=True, timeout=120)


def test_the_drawn_videos_are_videos_with_captions(tmp_path: Path) -> None:
    draw(tmp_path / "videos")
    drawn = sorted((tmp_path / "videos").glob("*.mp4"))
    assert [path.stem for path in drawn] == ["blue", "green", "red", "yellow"]
    for path in drawn:
        assert path.stem in path.with_suffix(".txt").read_text()
        with av.open(str(path)) as file:
            frames = sum(1 for _ in file.decode(video=0))
            assert (frames, file.streams.video[0].width, file.streams.video[0].height) == (72, 176, 144)


@pytest.mark.parametrize("name", documents.ON_THIS_MACHINE)
def test_the_guide(tmp_path: Path, name: str) -> None:
    reader = Reader(tmp_path, {"HOME": str(tmp_path / "home"), "STAGES": sys.executable})
    cats = tmp_path / "kinema" / "data" / "cats"
    draw(cats)
    (cats / "red.mp4").rename(cats / "tabby.mp4")
    (cats / "red.txt").unlink()
    *_, quarantined, listed = reader.run(documents.read(name))
    assert [line for line in quarantined.splitlines() if "tabby.mp4" in line] == quarantined.splitlines()
    assert "prepare: done: 1 videos" in listed
