# SPDX-License-Identifier: Apache-2.0
"""Operations of training: the trainer tells MFU by them, a plan its time; pure.

Counted are the matrix products of a forward pass, a multiply-add twice, attention in full; of a pack the sum over its
clips. Not counted: time and modulation MLPs, norms, softmax, RoPE, biases, the VAE, the text encoder. Agrees with
torch's FlopCounterMode over the diffusers class.

The model's operations, over which MFU is taken, are three times that, nothing for what is computed again. Low-rank
training asks for no gradient of the frozen matrices, so a product of each is left out; the additions' own, less than a
hundredth at rank 32, are not counted. The device's operations, of HFU, are these and what recomputation repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kinema_api.catalogue import Entry
from kinema_api.recompute import RecomputeMode
from kinema_api.settings import TrainSettings


@dataclass(frozen=True)
class Forward:
    """Operations of a forward pass over one clip."""

    attention: int
    """Between queries, keys and values, of which there are no weights."""
    matrices: int
    """Of the blocks' weights."""
    ends: int
    """Before and after the blocks."""

    @property
    def blocks(self) -> int:
        """What recomputation can repeat."""
        return self.attention + self.matrices

    @property
    def total(self) -> int:
        """All of them."""
        return self.blocks + self.ends


@dataclass(frozen=True)
class Operations:
    """Of training on one clip, or on several together."""

    model: float = 0.0
    """What the training asks for."""
    hardware: float = 0.0
    """What the device does."""

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.model + other.model, self.hardware + other.hardware)


def forward(model: Entry, *, tokens: int) -> Forward:
    """Operations of a forward pass over a clip of so many video tokens."""
    dims, text, hidden = model.transformer, model.text_length, model.transformer.hidden
    image, features = (0, 0) if model.image is None else (model.image.given, model.image.width)
    keys = text + image
    # Q, K, V and O of the clip, q and o of the cross-attention, its k and v of what is given, the MLP.
    matrices = (8 + 4) * tokens * hidden**2 + 4 * keys * hidden**2 + 4 * tokens * hidden * dims.ffn
    patches = 2 * tokens * hidden * math.prod(dims.patch) * (dims.in_channels + model.vae.channels)
    caption = 2 * text * (dims.text_dim * hidden + hidden**2)
    pictures = 2 * image * (features**2 + features * hidden)
    return Forward(
        attention=dims.layers * 4 * tokens * hidden * (tokens + keys),
        matrices=dims.layers * matrices,
        ends=patches + caption + pictures,
    )


def training(found: Forward, train: TrainSettings, *, layers: int) -> Operations:
    """Operations of training on a clip, by those of a forward pass over it."""
    model = 3.0 * found.total
    if train.lora.enabled:
        model -= found.total - found.attention
    return Operations(model=model, hardware=model + _repeated(found, train, layers=layers))


def _repeated(found: Forward, train: TrainSettings, *, layers: int) -> float:
    match train.recompute.mode:
        case RecomputeMode.NONE:
            return 0.0
        case RecomputeMode.INTERVAL:
            return found.blocks * math.ceil(layers / train.recompute.every) / layers
        case RecomputeMode.SELECTIVE:
            kept = {"attention": found.attention, "matmul": found.matrices}
            return float(max(0, found.blocks - sum(kept.get(name, 0) for name in train.recompute.save)))
        case _:
            return float(found.blocks)
