# SPDX-License-Identifier: Apache-2.0
"""Clips of unequal length, as the benchmarks of the data side train on them."""

from __future__ import annotations

import numpy as np

from kinema_api.catalogue import Entry, entry
from kinema_trainer.data.costs import Shape

FRAMES = (8, 64)
"""Latent frames of the shortest and of the longest clip, 16 tokens each: 1:8."""
SIDE = 8
TOY = entry("wan2.1-tiny")
SPEC: Entry = TOY.model_copy(
    update={
        "transformer": TOY.transformer.model_copy(
            update={"hidden": 192, "heads": 3, "layers": 4, "ffn": 768, "text_dim": 64}
        )
    }
)
"""Small enough for a processor, and still one whose time goes into matrix products."""


def tokens(frames: int) -> int:
    """Video tokens of a clip of so many latent frames."""
    rows, columns = SPEC.transformer.patch[1:]
    return frames * (SIDE // rows) * (SIDE // columns)


def shape(frames: int) -> Shape:
    """Latents of a clip."""
    return SPEC.vae.channels, frames, SIDE, SIDE


def log_uniform(count: int, *, seed: int) -> list[int]:
    """Latent frames of so many clips, every octave as frequent as any other."""
    low, high = FRAMES
    draws = np.random.default_rng(seed).random(count)
    return [round(low * (high / low) ** draw) for draw in draws]
