# SPDX-License-Identifier: Apache-2.0
"""Clips: where a video is cut. They are virtual: whoever needs the frames decodes exactly those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kinema_api.base import Model
from kinema_api.buckets import Geometry
from kinema_api.keys import PREPARE_FORMAT, digest
from kinema_api.settings import ClipVideo
from kinema_stage import assignment
from kinema_stage.assignment import LeftOut, Source
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

    @property
    def geometry(self) -> Geometry:
        """Its bucket, where there are several."""
        return Geometry(self.frames, self.height, self.width)

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


@dataclass(frozen=True, slots=True)
class Cut:
    """What became of a video."""

    clips: tuple[Clip, ...]
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)
    """Clips that the settings do not want, by why."""


def cut(*, video: str, tag: str, caption: str, info: VideoInfo, settings: ClipVideo) -> Cut | Quarantined:
    """The clips of one video, or why it can have none.

    Args:
        video: the video, relative to the dataset's folder.
        tag: its content tag.
        caption: what it shows.
        info: what it holds.
        settings: the geometries of clips.
    """

    def clip(first: int, geometry: Geometry) -> Clip:
        return Clip(
            key=digest([PREPARE_FORMAT, tag, first, [*geometry, settings.fps], caption]),
            video=video,
            start_seconds=first / settings.fps,
            **geometry._asdict(),
            fps=settings.fps,
            caption=caption,
        )

    problem = _problem(info, settings)
    if problem is not None:
        return Quarantined(video=video, reason=problem[0], message=problem[1])
    samples = info.samples(settings.fps)
    if not settings.buckets:
        geometry = Geometry(settings.frames, settings.height, settings.width)
        firsts = starts(samples=samples, frames=settings.frames, most=settings.clips_per_video)
        capped = samples // settings.frames - len(firsts)
        return Cut(tuple(clip(first, geometry) for first in firsts), {LeftOut.CAPPED: capped} if capped else {})
    source = _source(info, tag=tag, samples=samples)
    pieces = assignment.pieces(settings.buckets, source, seed=settings.seed)
    chosen, capped = assignment.capped(pieces, most=settings.clips_per_video)
    dropped = sum(piece.bucket is None for piece in pieces)
    return Cut(
        tuple(clip(piece.first, piece.bucket.geometry) for piece in chosen if piece.bucket is not None),
        {why: count for why, count in ((LeftOut.NOT_KEPT, dropped), (LeftOut.CAPPED, capped)) if count},
    )


def _source(info: VideoInfo, *, tag: str, samples: int) -> Source:
    return Source(tag=tag, samples=samples, height=info.height, width=info.width, still=info.frames == 1)


def _problem(info: VideoInfo, settings: ClipVideo) -> tuple[Reason, str] | None:
    """Why a video can have no clip at all."""
    if info.frames > 1 and info.fps < settings.fps * _LEAST_RATE:
        return (
            Reason.RATE_TOO_LOW,
            f"its {info.fps:.4g} frames a second are fewer than the {settings.fps:.4g} of a clip;"
            " lower stages.prepare.video.fps",
        )
    samples = info.samples(settings.fps)
    still = bool(settings.buckets) and info.frames == 1
    kind = [bucket.frames for bucket in settings.buckets if (bucket.frames == 1) is still]
    if settings.buckets and not kind:
        what = "an image, and no bucket has" if still else "no image, and every bucket has"
        return Reason.NO_BUCKET, f"it is {what} one frame"
    shortest = min(kind or [settings.frames])
    if samples < shortest:
        return (
            Reason.TOO_SHORT,
            f"its {info.duration:.2f} s are shorter than a clip: {shortest} frames at {settings.fps:.4g} a second are"
            f" {shortest / settings.fps:.2f} s",
        )
    if settings.buckets and not assignment.fitting(settings.buckets, _source(info, tag="", samples=samples)):
        return (
            Reason.NO_BUCKET,
            f"its {info.width}x{info.height} pixels fill no bucket of its length; add a smaller one to"
            " stages.prepare.video.buckets",
        )
    return None


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


def _lines(models: Iterable[Model]) -> bytes:
    return b"".join(model.model_dump_json(by_alias=True).encode() + b"\n" for model in models)
