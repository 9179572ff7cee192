# SPDX-License-Identifier: Apache-2.0
"""Whether the geometries of clips fit the model and each other; pure."""

from __future__ import annotations

from collections.abc import Iterator

from kinema_api.buckets import Bucket, Geometry
from kinema_api.catalogue import Entry
from kinema_api.settings import ClipVideo, Stages, Video

WHERE = "stages.prepare.video"


def geometries(video: ClipVideo) -> list[Geometry]:
    """The geometries that clips may have."""
    if video.buckets:
        return [bucket.geometry for bucket in video.buckets]
    return [Geometry(video.frames, video.height, video.width)]


def tokens(geometry: Geometry, model: Entry) -> int:
    """Video tokens of a clip."""
    frames, rows, columns = model.transformer.patch
    spatial = model.vae.spatial
    return (
        (model.vae.latent_frames(geometry.frames) // frames)
        * (geometry.height // spatial // rows)
        * (geometry.width // spatial // columns)
    )


def largest(video: ClipVideo, model: Entry) -> Video:
    """The geometry of the most tokens, as one of a single geometry."""
    chosen = max(geometries(video), key=lambda geometry: tokens(geometry, model))
    return Video(**chosen._asdict(), fps=video.fps, clips_per_video=video.clips_per_video)


def problems(stages: Stages, model: Entry) -> Iterator[str]:
    """What does not fit, a sentence each."""
    video = stages.prepare.video
    if video.buckets:
        for index, bucket in enumerate(video.buckets):
            yield from misfits(bucket, model, f"{WHERE}.buckets[{index}]")
        yield from _repeats(video.buckets)
        if not any(bucket.keep for bucket in video.buckets):
            yield f"spec.{WHERE}.buckets: every keep is 0, which leaves no clip; raise one"
    else:
        yield from misfits(video, model, WHERE)
    if stages.sample.enabled and stages.sample.video is not None:
        yield from misfits(stages.sample.video, model, "stages.sample.video")


def given_away(stages: Stages, *, images: int) -> Iterator[str]:
    """Clips that are nothing but the frames that a task is given: a sentence each."""
    video = stages.prepare.video
    found = [(f"{WHERE}.buckets[{index}]", bucket.frames) for index, bucket in enumerate(video.buckets)]
    for where, frames in found or [(WHERE, video.frames)]:
        if frames <= images:
            yield (
                f"spec.{where}.frames: a clip of {frames} is all given by the {images} that the task begins with; use"
                " more frames, or a model that does t2v"
            )


def misfits(video: Video | Bucket, model: Entry, where: str) -> Iterator[str]:
    """What of one geometry the model cannot take."""
    if (video.frames - 1) % model.vae.temporal:
        low = video.frames - (video.frames - 1) % model.vae.temporal
        yield (
            f"spec.{where}.frames: {video.frames} is not {model.vae.temporal}n+1; use {low} or"
            f" {low + model.vae.temporal}"
        )
    for axis, pixels in (("height", video.height), ("width", video.width)):
        if pixels % model.stride:
            low = max(model.stride, pixels - pixels % model.stride)
            yield f"spec.{where}.{axis}: {pixels} does not divide by {model.stride}; use {low} or {low + model.stride}"


def _repeats(buckets: list[Bucket]) -> Iterator[str]:
    seen: dict[Geometry, int] = {}
    for index, bucket in enumerate(buckets):
        first = seen.setdefault(bucket.geometry, index)
        if first != index:
            yield (
                f"spec.{WHERE}.buckets[{index}]: {bucket.geometry} is that of buckets[{first}] too; remove one of them"
            )


def unpacked(stages: Stages, model: Entry) -> str | None:
    """Why the packs cannot hold every clip; None when they can, or nothing is packed."""
    packing = stages.train.packing
    if packing is None:
        return None
    longest = max(geometries(stages.prepare.video), key=lambda geometry: tokens(geometry, model))
    need = tokens(longest, model)
    if need <= packing.tokens:
        return None
    return (
        f"spec.stages.train.packing.tokens: a clip of {longest} (frames x height x width) has {need} tokens, a pack at"
        f" most {packing.tokens}; raise it to {need} or more, or make clips smaller"
    )
