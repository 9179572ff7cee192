# SPDX-License-Identifier: Apache-2.0
"""Geometries of clips: a dataset may be cut into several, images among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from kinema_api.base import Model


class Geometry(NamedTuple):
    """Frames and pixels of a clip."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


class Bucket(Model):
    """Clips of one geometry. A source goes into the largest that it fills and whose chance it has."""

    frames: int = Field(ge=1, le=1025)
    """Frames of a clip: 4n+1, and 1 for images, which no video is cut into."""
    height: int = Field(ge=16, le=4320)
    """Pixels; must divide by the VAE's stride times the patch (16 for Wan 2.1)."""
    width: int = Field(ge=16, le=7680)
    """Pixels; must divide by the VAE's stride times the patch (16 for Wan 2.1)."""
    keep: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the fitting clips that this bucket takes; the others fall through to smaller ones, and are left out
    where none takes them."""
    batch: int = Field(default=1, ge=1, le=4096)
    """Clips of one forward pass on one device, where the train stage packs nothing."""

    @property
    def geometry(self) -> Geometry:
        """What its clips have."""
        return Geometry(self.frames, self.height, self.width)

    @property
    def area(self) -> int:
        """Pixels of a frame."""
        return self.height * self.width


def decisive(buckets: Iterable[Bucket]) -> list[dict[str, Any]]:
    """What of the buckets decides which clips there are: a batch does not, nor does the order."""
    return [bucket.model_dump(exclude={"batch"}) for bucket in sorted(buckets, key=lambda bucket: bucket.geometry)]
