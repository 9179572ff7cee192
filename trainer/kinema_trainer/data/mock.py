# SPDX-License-Identifier: Apache-2.0
"""Features of a dataset that does not exist: random, of the right shapes, the same in every run.

They go the way of real ones: what encodes clips is given frames that are all one grey value, by which the random
features of a clip are told from another's and from those of the clip with frames blanked, and encoders that look at
nothing else.
"""

from __future__ import annotations

import hashlib
from types import TracebackType

import torch

from kinema_api.catalogue import Entry
from kinema_stage.clips import Clip


class MockReel:
    """The frames of clips; see `kinema_trainer.encoding.work.Reel`. They take no memory and no decoding."""

    def __enter__(self) -> MockReel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def frames(self, clip: Clip) -> torch.Tensor:
        """[3, frames, height, width], every value the clip's own."""
        grey = torch.rand((), generator=_stream("clip", clip.key), dtype=torch.float32)
        return (2 * grey - 1).expand(3, clip.frames, clip.height, clip.width)


class MockEncoders:
    """Random features; see `kinema_trainer.encoding.encoders.Encoders`.

    Args:
        model: gives the shapes.
        dtype: the number format of what it returns.
    """

    def __init__(self, model: Entry, *, dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = dtype

    def latents(self, video: torch.Tensor) -> torch.Tensor:
        """[channels, latent frames, latent height, latent width], normally distributed; of one for [3, ...]."""
        vae = self._model.vae
        _, frames, height, width = video.shape
        shape = (vae.channels, vae.latent_frames(frames), height // vae.spatial, width // vae.spatial)
        marks = video[0, :, 0, 0].tolist()
        return torch.randn(shape, generator=_stream("latents", marks)).to(self._dtype)

    def image(self, frames: torch.Tensor) -> torch.Tensor:
        """[images x tokens, width], normally distributed; of given frames [images, 3, height, width]."""
        assert self._model.image is not None
        shape = (len(frames) * self._model.image.tokens, self._model.image.width)
        marks = [float(frame[0, 0, 0]) for frame in frames]
        return torch.randn(shape, generator=_stream("image", marks)).to(self._dtype)

    def text(self, caption: str) -> torch.Tensor:
        """[tokens, width]: as many tokens as chance gives the caption; the empty one has one."""
        stream = _stream("text", caption)
        tokens = int(torch.randint(1, self._model.text_length + 1, (), generator=stream)) if caption else 1
        return torch.randn((tokens, self._model.transformer.text_dim), generator=stream).to(self._dtype)


def _stream(what: str, content: object) -> torch.Generator:
    digest = hashlib.blake2b(f"{what}:{content}".encode(), digest_size=8, person=b"kinema-mock").digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
