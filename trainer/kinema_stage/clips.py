# SPDX-License-Identifier: Apache-2.0
"""Clips: where a video is cut. They are virtual: whoever needs the frames decodes exactly those."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kinema_api.base import Model
from kinema_api.keys import PREPARE_FORMAT, digest
from kinema_api.settings import Video
from kinema_stage.quarantine import Quarantined, Reason
from kinema_stage.video import VideoInfo, decode
from kinema_stage.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CLIPS = "clips.jsonl"
QUARANTINE = "quarantine.jsonl"

_LEAST_RATE = 0.95
"""Of the wanted rate. 23.976 and 24 count as 25, where one frame in twenty may show twice; below, motion stutters."""


class Clip(Model):
    """One line of clips.jsonl."""

    key: str
    """Digest of the source's content, the cut, the geometry and the caption: all that decides the clip's features."""
    video: str
    """The video, relative to the dataset's folder: each job that shares the list has its own address for that."""
    start_seconds: float
    """Where the clip starts, after the first frame of the video."""
    frames: int
    """Frames of the clip."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float
    """Frames a second of the clip."""
    caption: str
    """What the video shows."""

    def decode(self, path: Path) -> npt.NDArray[np.uint8]:
        """RGB frames [frames, height, width, 3].

        Args:
            path: the video on this machine, see `dataset.fetch`.

        Raises:
            VideoError: the source cannot be decoded.
        """
        return decode(
            path,
            start=self.start_seconds,
            count=self.frames,
            fps=self.fps,
            height=self.height,
            width=self.width,
        )


def starts(*, samples: int, frames: int, most: int) -> tuple[int, ...]:
    """First samples of the clips of a video, one after the other without overlap.

    A cap picks evenly among the places that the uncapped cut has, so that another cap finds the same clips again.

    Args:
        samples: frames of the video at the clips' rate.
        frames: frames of a clip.
        most: clips at most; 0 for all.
    """
    fit = samples // frames
    count = min(fit, most) if most else fit
    return tuple((2 * index + 1) * fit // (2 * count) * frames for index in range(count))


def cut(*, video: str, tag: str, caption: str, info: VideoInfo, settings: Video) -> tuple[Clip, ...] | Quarantined:
    """The clips of one video, or why there are none.

    Args:
        video: the video, relative to the dataset's folder.
        tag: its content tag.
        caption: what it shows.
        info: what it holds.
        settings: the geometry of a clip.
    """
    if info.frames > 1 and info.fps < settings.fps * _LEAST_RATE:
        message = (
            f"its {info.fps:.4g} frames a second are fewer than the {settings.fps:.4g} of a clip;"
            " lower stages.prepare.video.fps"
        )
        return Quarantined(video=video, reason=Reason.RATE_TOO_LOW, message=message)
    samples = info.samples(settings.fps)
    if samples < settings.frames:
        message = (
            f"its {info.duration:.2f} s are shorter than a clip: {settings.frames} frames at {settings.fps:.4g} a"
            f" second are {settings.frames / settings.fps:.2f} s"
        )
        return Quarantined(video=video, reason=Reason.TOO_SHORT, message=message)
    firsts = starts(samples=samples, frames=settings.frames, most=settings.clips_per_video)
    return tuple(
        Clip(
            key=digest([PREPARE_FORMAT, tag, first, _geometry(settings), caption]),
            video=video,
            start_seconds=first / settings.fps,
            frames=settings.frames,
            height=settings.height,
            width=settings.width,
            fps=settings.fps,
            caption=caption,
        )
        for first in firsts
    )


def write(workspace: Workspace, folder: str, *, clips: Iterable[Clip], quarantined: Iterable[Quarantined]) -> None:
    """Put both lists into an artifact's folder."""
    workspace.write(f"{folder}/{CLIPS}", _lines(clips))
    workspace.write(f"{folder}/{QUARANTINE}", _lines(quarantined))


def read(workspace: Workspace, folder: str) -> tuple[Clip, ...]:
    """The clips of a published artifact, in order.

    Raises:
        FileNotFoundError: there are none.
    """
    return tuple(Clip.model_validate_json(line) for line in workspace.read(f"{folder}/{CLIPS}").splitlines())


def _geometry(settings: Video) -> list[float]:
    return [settings.frames, settings.height, settings.width, settings.fps]


def _lines(models: Iterable[Model]) -> bytes:
    return b"".join(model.model_dump_json(by_alias=True).encode() + b"\n" for model in models)
