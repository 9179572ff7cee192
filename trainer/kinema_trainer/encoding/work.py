# SPDX-License-Identifier: Apache-2.0
"""Encoding one shard of clips: which clips it has, and how it gets into the workspace."""

from __future__ import annotations

import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Dataset, DatasetFormat
from kinema_api.stage import FeaturesConfig
from kinema_stage.claim import Claim
from kinema_stage.clips import Clip
from kinema_stage.context import Context
from kinema_stage.dataset import fetch
from kinema_stage.video import VideoError
from kinema_trainer.data import energon
from kinema_trainer.data.mock import MockEncoders, MockReel
from kinema_trainer.data.prefetch import prefetched
from kinema_trainer.data.shards import (
    META,
    Sample,
    ShardWriter,
    Sidecar,
    dump_meta,
    pack,
    scan_shard,
    shard_name,
    sidecar_name,
)
from kinema_trainer.encoding.encoders import Encoders
from kinema_trainer.encoding.reuse import Reuse
from kinema_trainer.objectives import conditions

logger = logging.getLogger(__name__)

AUDIT = "audit"
"""Folder of one record for each shard that somebody encoded to its end, for those who count."""


class BadClipError(Exception):
    """A clip cannot be turned into features; the others can."""


class ClaimLostError(Exception):
    """Another worker has taken the shard over."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard to be: its tar file and its clips, in order."""

    name: str
    clips: tuple[Clip, ...]


def plan(clips: Iterable[Clip], *, per_shard: int) -> list[ShardPlan]:
    """Clips in the manifest's order, so many a shard. The same for every worker. A repeated key counts once."""
    unique = list({clip.key: clip for clip in clips}.values())
    parts = [tuple(unique[start : start + per_shard]) for start in range(0, len(unique), per_shard)]
    return [ShardPlan(name=shard_name(index), clips=part) for index, part in enumerate(parts)]


def order(count: int, *, worker: int, workers: int) -> list[int]:
    """The shards as one worker goes through them: its own, then the others' from behind, where they come last."""
    own = list(range(worker, count, workers))
    return own + [index for index in reversed(range(count)) if index % workers != worker % workers]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What came of a clip before it reaches the encoders: one of three."""

    parts: dict[str, bytes] | None = None
    video: torch.Tensor | None = None
    fault: str = ""


class Reel:
    """The frames of clips; of a dataset elsewhere, the copy of one video serves the clips that follow one another.

    Use it as a context manager: leaving removes the copy. One thread at a time.

    Args:
        dataset: where the videos lie.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._video: str | None = None
        self._path = Path()
        self._copy = ExitStack()

    def __enter__(self) -> Reel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._copy.close()

    def frames(self, clip: Clip) -> torch.Tensor:
        """The frames of a clip as the VAE takes them: [3, frames, height, width] in [-1, 1].

        Raises:
            VideoError: its frames cannot be decoded.
            StageError: the video is not there at all, which says nothing about the clip.
        """
        try:
            if self._video != clip.video:
                self._copy.close()
                self._video = None
                self._path = self._copy.enter_context(fetch(self._dataset, clip.video))
                self._video = clip.video
            self._path.open("rb").close()
            pixels = np.ascontiguousarray(clip.decode(self._path))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise StageError(
                Exit.STORAGE,
                f"{self._dataset.uri}: {clip.video}: {error.strerror}; it was there when the clips were listed: put it"
                " back, or start a new job",
            ) from error
        return torch.from_numpy(pixels).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


def reel_of(dataset: Dataset) -> Reel | MockReel:
    """The frames of a dataset's clips."""
    return MockReel() if dataset.format is DatasetFormat.MOCK else Reel(dataset)


class ShardEncoder:
    """Encodes shards, one after the other.

    Args:
        context: the stage's surroundings.
        encoders: what turns clips into features; those of a mock see no video.
        known: clips that need no encoding.
        on_clip: hears after each clip how many of the shard are done.
    """

    def __init__(
        self, *, context: Context, encoders: Encoders | MockEncoders, known: Reuse, on_clip: Callable[[int], None]
    ) -> None:
        assert isinstance(context.config, FeaturesConfig)
        self._context = context
        self._dataset = context.config.dataset
        self._encoders = encoders
        self._known = known
        self._on_clip = on_clip

    def encode(self, shard: ShardPlan, *, claim: Claim) -> Sidecar:
        """Encode a shard and put it into the workspace.

        Raises:
            ClaimLostError: another worker is at it.
            StageError: interrupted; the shard is begun anew next time.
        """
        encoded: list[str] = []
        reused: list[str] = []
        quarantined: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix="kinema-shard-") as folder:
            path = Path(folder) / shard.name
            with (
                ShardWriter(path) as writer,
                reel_of(self._dataset) as reel,
                closing(prefetched(shard.clips, partial(self._load, reel))) as loaded,
            ):
                for number, (clip, item) in enumerate(loaded, start=1):
                    self._context.check_interrupted()
                    _check(claim, shard)
                    try:
                        writer.add(clip.key, self._features(clip, item))
                        (reused if item.parts else encoded).append(clip.key)
                    except BadClipError as error:
                        logger.warning("clip %s of %s is left out: %s", clip.key, clip.video, error)
                        quarantined[clip.key] = str(error)
                    self._on_clip(number)
            records = scan_shard(path, shapes=writer.shapes)
            sidecar = Sidecar(
                shard=shard.name,
                size=path.stat().st_size,
                holder=self._context.holder,
                clips=tuple(record.key for record in records),
                encoded=tuple(encoded),
                reused=tuple(reused),
                quarantined=quarantined,
                records=records,
            )
            _check(claim, shard)
            self._store(path, sidecar)
        return sidecar

    def _load(self, reel: Reel | MockReel, clip: Clip) -> _Loaded:
        parts = self._known.parts(clip.key)
        if parts is not None:
            return _Loaded(parts=parts)
        try:
            return _Loaded(video=reel.frames(clip))
        except VideoError as error:
            return _Loaded(fault=str(error))

    def _features(self, clip: Clip, item: _Loaded) -> dict[str, bytes]:
        """The members of the sample; only its address may differ from another artifact's sample of the same key."""
        meta = {
            "caption": clip.caption,
            "frames": clip.frames,
            "height": clip.height,
            "width": clip.width,
            "fps": clip.fps,
            "source": clip.video,
            "start": clip.start_seconds,
        }
        if item.parts is not None:
            return {**item.parts, META: dump_meta(meta)}
        if item.video is None:
            raise BadClipError(item.fault)
        latents = self._encoders.latents(item.video)
        if not torch.isfinite(latents).all():
            raise BadClipError(f"its latents are not finite in {latents.dtype}")
        sample = Sample(clip.key, latents, self._encoders.text(clip.caption), meta)
        images = self._context.config.task.images
        if images:
            condition = self._encoders.latents(conditions.blanked(item.video, images=images))
            image = self._encoders.image(conditions.given_frames(item.video, images=images))
            sample = replace(sample, condition=condition, image=image)
        return pack(sample)

    def _store(self, path: Path, sidecar: Sidecar) -> None:
        workspace, folder = self._context.workspace, self._context.folder
        workspace.upload(path, f"{folder}/{sidecar.shard}")
        workspace.write(f"{folder}/{energon.offsets_name(sidecar.shard)}", energon.offsets(sidecar))
        first = workspace.create(f"{folder}/{sidecar_name(sidecar.shard)}", sidecar.model_dump_json().encode())
        audit = {"holder": sidecar.holder, "encoded": sidecar.encoded, "reused": sidecar.reused, "first": first}
        name = f"{folder}/{AUDIT}/{sidecar.shard}-{uuid.uuid4().hex[:12]}.json"
        workspace.write(name, json.dumps(audit).encode())


def _check(claim: Claim, shard: ShardPlan) -> None:
    if not claim.held:
        raise ClaimLostError(f"{shard.name}: another worker has taken it over")
