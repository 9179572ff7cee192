# SPDX-License-Identifier: Apache-2.0
"""A dataset that does not exist: names, captions and sizes of videos that nobody ever opens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from kinema_api.buckets import Geometry
from kinema_api.keys import digest
from kinema_api.settings import ClipVideo
from kinema_stage.source import Source
from kinema_stage.video import VideoInfo


class MockSource(Source):
    """Has tags, so that keys follow from names, and no content.

    Args:
        clips: how many videos there are.
    """

    where = "the mock"

    def __init__(self, clips: int) -> None:
        self._clips = clips

    def names(self) -> list[str]:
        """Of the videos."""
        return [f"mock-{number:08d}" for number in range(self._clips)]

    def tags(self, names: Sequence[str]) -> dict[str, str]:
        """Of each name."""
        return {name: digest(["mock", name]) for name in names}

    def folder_tag(self, *folders: str) -> str:
        """Of their names."""
        return digest(["mock", *folders])

    def size(self, name: str) -> int:
        """There is none."""
        raise FileNotFoundError(name)

    def read(self, name: str, *, end: int | None = None) -> bytes:
        """There is nothing to read."""
        raise FileNotFoundError(name)

    def fetch_folders(self, *folders: str) -> Path:
        """There is nothing to fetch."""
        raise FileNotFoundError(", ".join(folders))

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """There is nothing to fetch."""
        raise FileNotFoundError(name)


def caption(name: str) -> str:
    """What a video that nobody sees shows."""
    return f"nothing, as {name} does not exist"


def info(name: str, settings: ClipVideo) -> VideoInfo:
    """What a video would hold: one clip of a bucket that chance gives it, each bucket as often."""
    geometries = [bucket.geometry for bucket in settings.buckets] or [
        Geometry(settings.frames, settings.height, settings.width)
    ]
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=b"kinema-mock").digest(), "little")
    chosen = geometries[number % len(geometries)]
    return VideoInfo(**chosen._asdict(), fps=settings.fps, duration=chosen.frames / settings.fps, codec="none")
