# SPDX-License-Identifier: Apache-2.0
"""Cutting: clips fit, do not overlap, and keep their keys when a dataset or a cap grows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema_api.settings import ClipVideo
from kinema_stage import clips
from kinema_stage.clips import Clip, starts
from kinema_stage.quarantine import Quarantined, Reason, summary
from kinema_stage.video import VideoInfo
from kinema_stage.workspace import FolderWorkspace


@given(samples=st.integers(1, 5000), frames=st.integers(1, 129), most=st.integers(0, 50))
def test_clips_fit_and_do_not_overlap(samples: int, frames: int, most: int) -> None:
    found = starts(samples=samples, frames=frames, most=most)
    fit = samples // frames
    assert len(found) == (min(fit, most) if most else fit)
    assert all(later - earlier >= frames for earlier, later in pairwise(found))
    assert all(first >= 0 and first + frames <= samples for first in found)
    assert set(found) <= set(starts(samples=samples, frames=frames, most=0)), "a cap finds the same places"


@pytest.mark.parametrize(
    ("most", "expected"), [(0, [0, 5, 10, 15, 20]), (1, [10]), (2, [5, 15]), (9, [0, 5, 10, 15, 20])]
)
def test_a_cap_spreads_evenly(most: int, expected: list[int]) -> None:
    assert list(starts(samples=27, frames=5, most=most)) == expected


def cut(info: VideoInfo, *, tag: str = "tag", caption: str = "words", **video: Any) -> tuple[Clip, ...] | Quarantined:
    settings = ClipVideo.model_validate({"frames": 17, "height": 16, "width": 32, "fps": 8, **video})
    found = clips.cut(video="a/b.mp4", tag=tag, caption=caption, info=info, settings=settings)
    return found.clips if isinstance(found, clips.Cut) else found


def info(frames: int, fps: float) -> VideoInfo:
    return VideoInfo(frames=frames, fps=fps, width=64, height=48, duration=frames / fps, codec="h264")


@pytest.mark.parametrize(
    ("frames", "fps", "count"), [(17, 8, 1), (33, 8, 1), (34, 8, 2), (49, 24, 1), (102, 24, 2), (51, 8, 3)]
)
def test_a_clip_takes_its_frames_over_its_rate(frames: int, fps: float, count: int) -> None:
    found = cut(info(frames, fps))
    assert isinstance(found, tuple)
    assert [clip.start_seconds for clip in found] == [index * 17 / 8 for index in range(count)]
    assert found[0].video == "a/b.mp4"


def test_a_key_is_of_all_that_decides_the_features() -> None:
    def key(frames: int = 40, **changes: Any) -> str:
        found = cut(info(frames, 8), **changes)
        assert isinstance(found, tuple)
        return found[0].key

    base = key()
    assert key() == base and key(frames=60) == base, "a longer video changes only its tag"
    changed = {
        key(tag="other"), key(caption="other"), key(fps=7.9), key(frames=60, clips_per_video=1), key(height=32),
        key(width=16),
    }  # fmt: skip
    assert len(changed) == 6 and base not in changed


@pytest.mark.parametrize(
    ("frames", "fps", "reason", "text"),
    [
        (16, 8, Reason.TOO_SHORT, "its 2.00 s are shorter than a clip: 17 frames at 8 a second are 2.12 s"),
        (100, 7.5, Reason.RATE_TOO_LOW, "its 7.5 frames a second are fewer than the 8 of a clip; lower stages.prepare"),
        (1, 8, Reason.TOO_SHORT, "shorter than a clip"),
    ],
)
def test_what_does_not_fit_says_why(frames: int, fps: float, reason: Reason, text: str) -> None:
    found = cut(info(frames, fps))
    assert isinstance(found, Quarantined)
    assert found.reason is reason
    assert text in found.message


def test_film_counts_as_25_frames_a_second() -> None:
    assert isinstance(cut(info(100, 23.976), fps=25), tuple)


def test_lists_are_read_as_they_were_written(tmp_path: Path) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path}")
    found = cut(info(60, 8), caption="two\nlines\u2028and ä")
    assert isinstance(found, tuple)
    clips.write(workspace, "a", clips=found, quarantined=[])
    assert clips.read(workspace, "a") == found
    assert workspace.read("a/quarantine.jsonl") == b""


def test_a_summary_counts_reasons_with_an_example() -> None:
    entries = [
        Quarantined(video="1", reason=Reason.TOO_SHORT, message="short"),
        Quarantined(video="2", reason=Reason.NO_CAPTION, message="none"),
        Quarantined(video="3", reason=Reason.NO_CAPTION, message="none either"),
    ]
    assert summary(entries) == "2 MissingCaption (for instance 2: none); 1 TooShort (for instance 1: short)"
