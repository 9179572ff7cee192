# SPDX-License-Identifier: Apache-2.0
"""Videos: what is in a file, and the frames of a clip.

Times count in seconds from the first frame that the decoder gives. A clip's frames are those nearest to the points
of a regular grid, so sources of any rate, and of a varying one, give clips of one rate.
"""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema_api.base import Model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SEEK_FROM = 1.0
"""Seconds; an earlier start is reached by decoding."""
_EXPECTED_SHARE = 0.9
"""An index may count some frames that an edit list hides; more missing ones mean a truncated file."""
_TIE = 1e-6
_UNTAGGED = 2
"""AVCOL_SPC_UNSPECIFIED."""
_SD_LINES = 576
_QUALITY = 1 << 9 | 1 << 13 | 1 << 18 | 1 << 19
"""libswscale's LANCZOS, FULL_CHR_H_INT, ACCURATE_RND and BITEXACT (swscale.h; av names them all from 18 on). Without
the second and third, pixels come out up to two levels too dark."""
_VOLUME = frozenset({errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT})
"""Failures of the volume, not of the video: the stage has to be run again."""


class VideoError(Exception):
    """A video cannot be read; the message says where it breaks."""


class VideoInfo(Model):
    """What a video holds, as it is shown: rotated, with square pixels."""

    frames: int
    """Frames that the decoder gives."""
    fps: float
    """Mean rate."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    duration: float
    """Seconds, the last frame's own time included."""
    codec: str
    """Name of the codec."""

    def samples(self, fps: float) -> int:
        """Frames at another rate: points of a grid that have a frame within half a frame's time."""
        span = (self.frames - 1) / self.fps
        return math.floor(span * fps + min(0.5, 0.5 * fps / self.fps) + _TIE) + 1


def probe(path: Path) -> VideoInfo:
    """Decode a whole video once.

    Containers lie: an index may promise frames that were cut off, count hidden ones or misstate the rate, and damage
    in the middle shows only to the decoder. Encoding decodes the same frames again on a node with an accelerator,
    where a broken file would cost far more; without colour conversion the pass is cheap.

    Raises:
        VideoError: it cannot be decoded from the first frame to the last.
    """
    with _open(path, threads=1) as source:
        count, first, last = 0, 0.0, 0.0
        shape = (0, 0)
        for time, frame in source.frames():
            if frame.is_corrupt:
                raise VideoError(f"frame {count} at {time:.2f} s is damaged")
            if not count:
                first, shape = time, _shown(source, frame)
            count, last = count + 1, time
        expected = source.stream.frames
        if count < expected * _EXPECTED_SHARE:
            raise VideoError(f"it is cut off: {count} of {expected} frames are there")
        if not count:
            raise VideoError("it has no frames")
        fps = (count - 1) / (last - first) if last > first else source.rate
        return VideoInfo(
            frames=count,
            fps=fps,
            width=shape[0],
            height=shape[1],
            duration=count / fps,
            codec=source.stream.codec_context.name,
        )


def decode(path: Path, *, start: float, count: int, fps: float, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Frames of a clip, scaled to cover `height` x `width` and cropped to its centre.

    Args:
        path: the video.
        start: seconds after its first frame.
        count: frames.
        fps: frames a second.
        height: pixels.
        width: pixels.

    Returns:
        RGB [count, height, width, 3].

    Raises:
        VideoError: a frame of the clip cannot be decoded.
    """
    import numpy as np

    targets = [start + index / fps for index in range(count)]
    clip = np.empty((count, height, width, 3), dtype=np.uint8)
    for seek in (True, False):
        with _open(path) as source:
            scaler = _Scaler(source, height=height, width=width)
            frames = source.frames_from(start) if seek else source.frames()
            if frames is None:
                continue
            for index, frame in enumerate(_nearest(frames, targets, slack=1 / fps)):
                clip[index] = scaler(frame)
            return clip
    raise AssertionError("decoding from the start always has frames or raises")


def _nearest(frames: Iterator[tuple[float, Any]], targets: Sequence[float], *, slack: float) -> Iterator[Any]:
    """The frame nearest to each target; of two equally near ones the earlier."""
    index = 0
    before: tuple[float, Any] | None = None
    for time, frame in frames:
        while index < len(targets) and targets[index] <= time:
            nearer = before is None or time - targets[index] < targets[index] - before[0] - _TIE
            yield frame if before is None or nearer else before[1]
            index += 1
        if index == len(targets):
            return
        before = (time, frame)
    while index < len(targets):
        if before is None or targets[index] - before[0] > slack:
            raise VideoError(f"it ends before {targets[index]:.2f} s")
        yield before[1]
        index += 1


@dataclass(slots=True)
class _Source:
    """An open video. One iteration at a time."""

    container: Any
    stream: Any

    @property
    def rate(self) -> float:
        """Frames a second that the container claims."""
        return float(self.stream.average_rate or self.stream.guessed_rate or 25)

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel over its height."""
        ratio = self.stream.sample_aspect_ratio
        return float(ratio) if ratio else 1.0

    def frames(self) -> Iterator[tuple[float, Any]]:
        """Every frame with its time after the first one; times rise."""
        first: float | None = None
        last = -math.inf
        for frame in self._decode():
            time = frame.time if frame.time is not None else max(last, -1 / self.rate) + 1 / self.rate
            first = time if first is None else first
            if time - first <= last:
                continue
            last = time - first
            yield last, frame

    def frames_from(self, start: float) -> Iterator[tuple[float, Any]] | None:
        """Frames from a key frame at or before `start` on; None when the container cannot seek there."""
        if start < _SEEK_FROM:
            return self.frames()
        first = next(self._decode(), None)
        if first is None or first.pts is None:
            return None
        try:
            self.container.seek(first.pts + int(start / self.stream.time_base), stream=self.stream)
        except OSError:
            return None
        found = self._decode()
        # What precedes the key frame in an open group of pictures refers to frames before the seek.
        key = next((frame for frame in found if frame.key_frame and frame.time is not None), None)
        if key is None or key.time - first.time > start:
            return None
        return self._rest(key, found, origin=first.time)

    def _rest(self, key: Any, found: Iterator[Any], *, origin: float) -> Iterator[tuple[float, Any]]:
        last = key.time - origin
        yield last, key
        for frame in found:
            if frame.time is not None and frame.time - origin > last:
                last = frame.time - origin
                yield last, frame

    def _decode(self) -> Iterator[Any]:
        yield from self.container.decode(self.stream)


@contextlib.contextmanager
def _open(path: Path, *, threads: int = 0) -> Iterator[_Source]:
    """Open a video; `threads` 0 lets the decoder choose."""
    import av

    try:
        with av.open(str(path)) as container:
            stream: Any = container.streams.best("video")
            if stream is None:
                raise VideoError("it has no video stream")
            stream.codec_context.thread_count = threads
            if not threads:
                stream.thread_type = "AUTO"
            yield _Source(container=container, stream=stream)
    except (av.FFmpegError, OSError, ValueError) as error:
        if getattr(error, "errno", None) in _VOLUME:
            raise
        raise VideoError(f"it cannot be decoded: {getattr(error, 'strerror', None) or error}") from error


def _turns(frame: Any) -> int:
    """Quarter turns to the left by which a frame is to be shown."""
    degrees: float = frame.rotation
    return round(degrees / 90) % 4


def _shown(source: _Source, frame: Any) -> tuple[int, int]:
    width, height = round(frame.width * source.pixel_aspect), frame.height
    return (height, width) if _turns(frame) % 2 else (width, height)


class _Scaler:
    """Turns a frame into RGB of the wanted size, the same on every processor."""

    def __init__(self, source: _Source, *, height: int, width: int) -> None:
        from av.video.reformatter import Colorspace, VideoReformatter

        self._aspect = source.pixel_aspect
        self._height = height
        self._width = width
        self._reformatter = VideoReformatter()
        self._hd_colors = Colorspace.ITU709

    def __call__(self, frame: Any) -> npt.NDArray[np.uint8]:
        import numpy as np

        turns = _turns(frame)
        height, width = (self._width, self._height) if turns % 2 else (self._height, self._width)
        scale = max(width / (frame.width * self._aspect), height / frame.height)
        full_width = max(width, round(frame.width * self._aspect * scale))
        full_height = max(height, round(frame.height * scale))
        scaled = self._reformatter.reformat(
            frame,
            width=full_width,
            height=full_height,
            format="rgb24",
            # Players take untagged HD for BT.709, the scaler would take BT.601.
            src_colorspace=self._hd_colors if frame.colorspace == _UNTAGGED and frame.height > _SD_LINES else None,
            interpolation=_QUALITY,
        )
        top, left = (full_height - height) // 2, (full_width - width) // 2
        cropped = scaled.to_ndarray()[top : top + height, left : left + width]
        turned: npt.NDArray[np.uint8] = np.rot90(cropped, turns)
        return turned
