# SPDX-License-Identifier: Apache-2.0
"""Videos: what is in them, which frames a clip takes, and how they are scaled."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from kinema_stage.video import VideoError, decode, probe

from tests.unit.stage.support import make_video, numbers

SIZE = {"height": 16, "width": 32}


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")]
)
def test_a_probe_tells_what_the_decoder_gives(tmp_path: Path, name: str, codec: str) -> None:
    info = probe(make_video(tmp_path / name, frames=30, fps=12, size=(64, 48), codec=codec))
    assert (info.frames, info.width, info.height) == (30, 64, 48)
    assert info.fps == pytest.approx(12, rel=0.01)
    assert info.duration == pytest.approx(2.5, rel=0.01)
    assert info.codec == {"libx264": "h264", "libvpx-vp9": "vp9"}.get(codec, codec)


@pytest.mark.parametrize(
    ("source", "wanted", "expected"),
    [
        (8, 8, list(range(9))),
        (24, 8, [0, 3, 6, 9, 12, 15, 18, 21, 24]),
        (24, 16, [0, 1, 3, 4, 6, 7, 9, 10, 12]),
        (30, 8, [0, 4, 7, 11, 15, 19, 22, 26, 30]),
    ],
)
def test_a_higher_rate_is_thinned_to_the_nearest_frames(
    tmp_path: Path, source: int, wanted: int, expected: list[int]
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=40, fps=source)
    clip = decode(path, start=0, count=9, fps=wanted, **SIZE)
    assert clip.shape == (9, 16, 32, 3) and clip.dtype == np.uint8
    assert numbers(clip) == expected


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.webm"])
def test_a_later_start_gives_the_frames_that_decoding_from_the_start_gives(tmp_path: Path, name: str) -> None:
    codec = {"avi": "mpeg4", "webm": "libvpx-vp9"}.get(name[2:], "libx264")
    path = make_video(tmp_path / name, frames=60, fps=8, codec=codec)
    whole = decode(path, start=0, count=60, fps=8, **SIZE)
    for first in (7, 8, 23, 24, 25, 43):
        assert np.array_equal(decode(path, start=first / 8, count=17, fps=8, **SIZE), whole[first : first + 17])


def test_a_varying_rate_is_followed_by_its_timestamps(tmp_path: Path) -> None:
    # Two frames a second for two seconds, then twenty a second.
    shown = [0, 500, 1000, 1500, *range(2000, 4000, 50)]
    path = make_video(tmp_path / "a.mkv", frames=len(shown), milliseconds=shown)
    info = probe(path)
    assert info.frames == 44
    assert info.duration == pytest.approx(3.95 * 44 / 43)
    clip = decode(path, start=1.0, count=9, fps=4, **SIZE)
    # 1.0 1.25 1.5 1.75 2.0 2.25 2.5 2.75 3.0 s
    assert numbers(clip) == [2, 2, 3, 3, 4, 9, 14, 19, 24]


def test_a_clip_may_reach_to_the_last_frame_but_not_beyond(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=49, fps=24)
    assert probe(path).samples(8) == 17
    assert numbers(decode(path, start=0, count=17, fps=8, **SIZE))[-1] == 48
    with pytest.raises(VideoError, match=r"ends before 2\.25 s"):
        decode(path, start=0, count=19, fps=8, **SIZE)


def test_samples_at_the_same_rate_are_the_frames(tmp_path: Path) -> None:
    info = probe(make_video(tmp_path / "a.mp4", frames=21, fps=30))
    assert [info.samples(fps) for fps in (30, 29.97, 15, 10)] == [21, 21, 11, 7]


def halves(path: Path, *, size: tuple[int, int], aspect: Fraction | None = None) -> Path:
    """A video whose left half is black and whose right half is white."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, width // 2 :] = 255
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("size", [(64, 64), (128, 32), (32, 128), (20, 20)])
def test_the_centre_is_kept_when_a_frame_is_scaled_to_cover(tmp_path: Path, size: tuple[int, int]) -> None:
    clip = decode(halves(tmp_path / "a.mp4", size=size), start=0, count=1, fps=8, height=32, width=32)
    columns = clip[0].mean(axis=(0, 2))
    assert columns[:12].max() < 20 and columns[20:].min() > 235


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    path = halves(tmp_path / "a.mp4", size=(32, 32), aspect=Fraction(4, 1))
    info = probe(path)
    assert (info.width, info.height) == (128, 32)
    clip = decode(path, start=0, count=1, fps=8, height=32, width=128)
    columns = clip[0].mean(axis=(0, 2))
    assert columns[:56].max() < 20 and columns[72:].min() > 235


def rotate(path: Path) -> Path:
    """Mark an mp4 as filmed with the camera upright: to be shown turned right by 90 degrees.

    The matrix of the track header (ISO 14496-12, 8.3.2) sends (x, y) to (-y, x).
    """
    data = bytearray(path.read_bytes())
    one = 0x00010000
    plain = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    at = data.rindex(plain)
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def test_a_phones_rotation_is_applied(tmp_path: Path) -> None:
    path = rotate(halves(tmp_path / "a.mp4", size=(64, 32)))
    info = probe(path)
    assert (info.width, info.height) == (32, 64)
    rows = decode(path, start=0, count=1, fps=8, height=64, width=32)[0].mean(axis=(1, 2))
    assert rows[:28].max() < 20 and rows[36:].min() > 235, "what was on the left is at the top"


def test_broken_files_say_so(tmp_path: Path) -> None:
    good = make_video(tmp_path / "good.mp4", frames=40, options={"movflags": "faststart"}).read_bytes()
    path = tmp_path / "bad.mp4"
    for content, message in [
        (b"", "cannot be decoded"),
        (b"no video at all" * 99, "cannot be decoded"),
        (good[: len(good) // 4], "cannot be decoded|cut off"),
        (good[: len(good) * 3 // 4], "cannot be decoded|cut off"),
    ]:
        path.write_bytes(content)
        with pytest.raises(VideoError, match=message):
            probe(path)


def test_damage_in_the_middle_is_found(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=40, size=(64, 64), options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    for at in range(start, len(data) - 8, 7):
        data[at] ^= 0xA5
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"cannot be decoded|damaged"):
        probe(path)


def test_a_file_without_a_picture_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    info = probe(make_video(tmp_path / "a.mp4", frames=1))
    assert (info.frames, info.samples(8)) == (1, 1)


@pytest.mark.parametrize(("size", "green"), [((1280, 720), 0.7152), ((640, 360), 0.587)])
def test_untagged_colours_are_read_as_players_read_them(tmp_path: Path, size: tuple[int, int], green: float) -> None:
    """Pure green has a luma of 0.7152 in BT.709 (HD) and of 0.587 in BT.601."""
    blue, red = (0.0722, 0.2126) if green > 0.7 else (0.114, 0.299)
    width, height = size
    planes = np.empty((height * 3 // 2, width), np.uint8)
    planes[:height] = 16 + round(219 * green)
    planes[height : height * 5 // 4] = 128 + round(224 * -green / (2 * (1 - blue)))
    planes[height * 5 // 4 :] = 128 + round(224 * -green / (2 * (1 - red)))
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
    pixel = decode(path, start=0, count=1, fps=8, height=16, width=16)[0, 8, 8]
    assert np.abs(pixel.astype(int) - [0, 255, 0]).max() <= 3, pixel


def test_brightness_is_kept(tmp_path: Path) -> None:
    clip = decode(make_video(tmp_path / "a.mp4", frames=60), start=0, count=60, fps=8, **SIZE)
    expected = 4 * np.arange(60)
    error = clip.mean(axis=(1, 2, 3)) - expected
    assert np.abs(error).max() <= 1 and abs(error.mean()) < 0.25
