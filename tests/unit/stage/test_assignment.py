# SPDX-License-Identifier: Apache-2.0
"""Buckets: every piece of a source is in one clip or counted as left out, the same in every run."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kinema_api.buckets import Bucket, Geometry
from kinema_api.exits import Exit, StageError, Termination
from kinema_api.inputs import Dataset
from kinema_api.settings import ClipVideo, PrepareSettings
from kinema_stage import artifact, clips
from kinema_stage.assignment import LeftOut, Piece, Source, capped, fitting, pieces
from kinema_stage.quarantine import Quarantined, Reason
from kinema_stage.stages import check, prepare
from kinema_stage.video import VideoInfo
from kinema_stage.workspace import FolderWorkspace

from tests.unit.stage.support import captioned, check_config, context_of, numbers, prepare_config

pytestmark = pytest.mark.unit


def bucket(frames: int, height: int, width: int, keep: float = 1.0) -> Bucket:
    return Bucket(frames=frames, height=height, width=width, keep=keep)


def source(samples: int = 100, *, height: int = 720, width: int = 1280, tag: str = "tag") -> Source:
    return Source(tag=tag, samples=samples, height=height, width=width, still=samples == 1)


LARGE, LONG, SHORT = bucket(17, 640, 1152), bucket(49, 320, 576), bucket(17, 320, 576)
TALL, IMAGE = bucket(49, 576, 320), bucket(1, 640, 1152)
ALL = [SHORT, IMAGE, TALL, LARGE, LONG]


def test_the_largest_frame_comes_first_there_the_longest_clip_of_the_nearest_shape() -> None:
    assert fitting(ALL, source()) == [LARGE, LONG, SHORT]
    assert fitting(ALL, source(height=1280, width=720)) == [LARGE, TALL, SHORT]


def test_a_source_is_neither_blown_up_nor_stretched_in_time() -> None:
    assert fitting(ALL, source(20, height=480, width=832)) == [SHORT]
    assert fitting(ALL, source(16)) == []
    assert fitting(ALL, source(height=144, width=256)) == []
    # A little less than the bucket's pixels will do.
    assert fitting([bucket(17, 480, 832)], source(height=450, width=800)) != []


def test_images_go_into_buckets_of_one_frame_and_videos_do_not() -> None:
    assert fitting(ALL, source(1)) == [IMAGE]
    assert IMAGE not in fitting(ALL, source(500))


def test_what_a_bucket_does_not_keep_falls_through() -> None:
    never = LONG.model_copy(update={"keep": 0.0})
    found = pieces([never, SHORT], source(100), seed=0)
    assert [(piece.first, piece.bucket) for piece in found] == [(first, SHORT) for first in (0, 17, 34, 51, 68)]


def test_a_piece_that_none_keeps_is_left_out_whole() -> None:
    never = [item.model_copy(update={"keep": 0.0}) for item in (LONG, SHORT)]
    assert pieces(never, source(100), seed=0) == (
        Piece(0, 49, None),
        Piece(49, 49, None),
    )


def test_the_end_of_a_video_fills_shorter_buckets() -> None:
    found = pieces([LONG, SHORT], source(100 + 20), seed=0)
    assert [(piece.first, piece.frames) for piece in found] == [(0, 49), (49, 49), (98, 17)]


@given(
    samples=st.integers(1, 400),
    keeps=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    seed=st.integers(0, 9),
    most=st.integers(0, 6),
)
def test_kept_and_left_out_are_all(samples: int, keeps: list[float], seed: int, most: int) -> None:
    buckets = [item.model_copy(update={"keep": keep}) for item, keep in zip((LARGE, LONG, SHORT), keeps, strict=True)]
    video = VideoInfo(frames=samples, fps=8, width=1280, height=720, duration=samples / 8, codec="h264")
    settings = ClipVideo(buckets=buckets, fps=8, seed=seed, clips_per_video=most)
    found = clips.cut(video="v", tag="tag", caption="c", info=video, settings=settings)
    if isinstance(found, Quarantined):
        assert samples < 17
        return
    whole = pieces(buckets, source(samples), seed=seed)
    assert len(found.clips) + sum(found.left_out.values()) == len(whole)
    assert found.left_out.get(LeftOut.NOT_KEPT, 0) == sum(piece.bucket is None for piece in whole)
    assert not most or len(found.clips) <= most
    assert all(earlier.first + earlier.frames == later.first for earlier, later in pairwise(whole))
    assert clips.cut(video="v", tag="tag", caption="c", info=video, settings=settings) == found


def test_a_bucket_keeps_its_share_by_the_clip_not_by_the_order() -> None:
    half = [LONG.model_copy(update={"keep": 0.3})]
    kept = {
        tag for tag in range(2000) if pieces(half, source(49, tag=str(tag)), seed=1)[0].bucket is not None
    }  # fmt: skip
    assert 500 < len(kept) < 700
    again = {tag for tag in reversed(range(2000)) if pieces(half, source(60, tag=str(tag)), seed=1)[0].bucket}
    assert again == kept
    assert kept != {tag for tag in range(2000) if pieces(half, source(49, tag=str(tag)), seed=2)[0].bucket}


def test_a_cap_counts_what_it_leaves_out() -> None:
    found = pieces([SHORT], source(100), seed=0)
    chosen, more = capped(found, most=2)
    assert ([piece.first for piece in chosen], more) == ([17, 51], 3)
    assert capped(found, most=0) == (list(found), 0)


def test_one_bucket_cuts_as_one_geometry_does_under_the_same_keys() -> None:
    info = VideoInfo(frames=100, fps=8, width=1280, height=720, duration=12.5, codec="h264")

    def cut(**video: Any) -> clips.Cut:
        settings = ClipVideo.model_validate({"fps": 8, **video})
        found = clips.cut(video="v", tag="tag", caption="c", info=info, settings=settings)
        assert isinstance(found, clips.Cut)
        return found

    size = {"frames": 17, "height": 320, "width": 576}
    assert cut(**size) == cut(buckets=[size])
    assert cut(**size, clips_per_video=2) == cut(buckets=[size], clips_per_video=2)


@pytest.mark.parametrize(
    ("frames", "size", "buckets", "reason", "text"),
    [
        (1, (64, 64), [SHORT], Reason.NO_BUCKET, "an image, and no bucket has one frame"),
        (90, (64, 64), [IMAGE], Reason.NO_BUCKET, "no image, and every bucket has one frame"),
        (90, (64, 64), [SHORT], Reason.NO_BUCKET, "its 64x64 pixels fill no bucket of its length"),
        (9, (1280, 720), [SHORT, LONG], Reason.TOO_SHORT, "17 frames at 8 a second are 2.12 s"),
    ],
)
def test_a_source_that_fits_nowhere_says_why(
    frames: int, size: tuple[int, int], buckets: list[Bucket], reason: Reason, text: str
) -> None:
    info = VideoInfo(frames=frames, fps=8, width=size[0], height=size[1], duration=frames / 8, codec="h264")
    found = clips.cut(video="v", tag="t", caption="c", info=info, settings=ClipVideo(buckets=buckets, fps=8))
    assert isinstance(found, Quarantined)
    assert found.reason is reason
    assert text in found.message


def run(tmp_path: Path, settings: PrepareSettings, dataset: Dataset | None = None) -> Termination:
    config = check_config(tmp_path, prepare=settings, dataset=dataset)
    key = check.run(context_of(config)).keys["prepare"]
    return prepare.run(context_of(prepare_config(config, key)))


def read(tmp_path: Path, end: Termination) -> tuple[tuple[clips.Clip, ...], artifact.Manifest]:
    assert end.artifact is not None
    workspace = FolderWorkspace(f"file://{tmp_path}/work")
    folder = end.artifact.removeprefix(workspace.uri() + "/")
    manifest = artifact.published(workspace, folder)
    assert manifest is not None
    return clips.read(workspace, folder), manifest


def test_prepare_fills_buckets_from_videos_and_images_and_says_what_is_left_out(tmp_path: Path) -> None:
    captioned(tmp_path / "data" / "long.mp4", frames=30)
    captioned(tmp_path / "data" / "small.mp4", "other words", size=(32, 16), frames=10)
    Image.new("RGB", (48, 32), (200, 200, 200)).save(tmp_path / "data" / "still.png")
    (tmp_path / "data" / "still.txt").write_text("a still")
    buckets = [bucket(17, 32, 48), bucket(5, 32, 48), bucket(9, 16, 32, keep=0.0), bucket(1, 32, 48)]
    settings = PrepareSettings(video=ClipVideo(buckets=buckets, fps=8))
    end = run(tmp_path, settings)
    assert end.counts == {"videos": 3, "clips": 4, "quarantined": 0, "leftOut": 1}
    found, manifest = read(tmp_path, end)
    assert Counter(clip.geometry for clip in found) == {(17, 32, 48): 1, (5, 32, 48): 2, (1, 32, 48): 1}
    assert manifest.details["buckets"] == {"17x32x48": 1, "5x32x48": 2, "1x32x48": 1}
    assert manifest.details["leftOut"] == {"notKept": 1}
    assert "by bucket: 2 5x32x48, 1 17x32x48, 1 1x32x48; 1 clips left out: 1 by keep" in end.message
    for clip in found:
        assert clip.decode(tmp_path / "data" / clip.video).shape == (*clip.geometry, 3)
    late = next(clip for clip in found if clip.geometry == Geometry(5, 32, 48) and clip.start_seconds > 2.5)
    assert numbers(late.decode(tmp_path / "data" / late.video)) == [22, 23, 24, 25, 26]


def test_images_are_no_part_of_a_dataset_of_videos(tmp_path: Path) -> None:
    captioned(tmp_path / "data" / "a.mp4")
    key = check.run(context_of(check_config(tmp_path))).keys["prepare"]
    Image.new("RGB", (48, 32)).save(tmp_path / "data" / "a.jpg")
    assert check.run(context_of(check_config(tmp_path))).keys["prepare"] == key


def test_buckets_that_keep_nothing_are_a_fault_of_the_data(tmp_path: Path) -> None:
    captioned(tmp_path / "data" / "a.mp4")
    settings = PrepareSettings(video=ClipVideo(buckets=[bucket(17, 32, 48, keep=1e-12)], fps=8))
    with pytest.raises(StageError, match="the buckets keep none of the 2 clips") as caught:
        run(tmp_path, settings)
    assert caught.value.code is Exit.DATA


MOCK = Dataset.model_validate({"format": "mock", "mock": {"clips": 40}})


def test_a_mock_goes_through_check_and_prepare_without_a_file(tmp_path: Path) -> None:
    end = run(tmp_path, PrepareSettings(video=ClipVideo(frames=17, height=32, width=48, fps=8)), MOCK)
    found, _ = read(tmp_path, end)
    assert end.counts == {"videos": 40, "clips": 40, "quarantined": 0}
    assert {clip.geometry for clip in found} == {(17, 32, 48)}
    assert len({clip.key for clip in found}) == len({clip.caption for clip in found}) == 40


def test_a_mock_fills_every_bucket(tmp_path: Path) -> None:
    buckets = [bucket(17, 32, 48), bucket(9, 64, 96, keep=0.5), bucket(1, 32, 48)]
    end = run(tmp_path, PrepareSettings(video=ClipVideo(buckets=buckets, fps=8)), MOCK)
    found, manifest = read(tmp_path, end)
    assert {clip.geometry for clip in found} == {item.geometry for item in buckets}
    assert end.counts["clips"] + end.counts["leftOut"] == 40
    assert manifest.counts == end.counts
