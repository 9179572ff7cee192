# SPDX-License-Identifier: Apache-2.0
"""Operations of a training sample: those that the training asks for, and those that the device makes.

The model's operations, over which MFU is taken, are the family's formula: three times the matrix products of a forward
pass, nothing for what is computed again. Low-rank training asks for no gradient of the frozen matrices, so a product of
each is left out; the additions' own, less than a hundredth at rank 32, are not counted. The device's operations, of
HFU, are these and what recomputation repeats.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kinema_api.catalogue import Entry
from kinema_api.recompute import RecomputeMode
from kinema_api.settings import TrainSettings
from kinema_api.stage import TrainConfig
from kinema_trainer.data.course import Step
from kinema_trainer.models import Adapter


@dataclass(frozen=True, slots=True)
class Operations:
    """Of one sample, or of several together."""

    model: float = 0.0
    hardware: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.model + other.model, self.hardware + other.hardware)


@dataclass(frozen=True, slots=True)
class Count:
    """What one device does for an optimizer step."""

    operations: Operations
    padding: float = 0.0
    """Share of the tokens that count nothing in the loss."""

    @classmethod
    def of(
        cls, step: Step, *, adapter: Adapter, config: TrainConfig, shapes: Sequence[Sequence[int]], world: int
    ) -> Count:
        """Of each of `world` devices; `shapes` are the latents of the step's clips, in their order."""
        slots = (slot for pack in step.packs for slot in pack.slots)
        # A step may have thousands of clips, and few shapes.
        clips = Counter((tuple(shape), bool(slot.weight)) for slot, shape in zip(slots, shapes, strict=True))
        model = hardware = 0.0
        sizes = {True: 0, False: 0}
        for (shape, counts), number in clips.items():
            sizes[counts] += number * math.prod(shape[1:])
            if counts:
                one = operations(adapter, config.model, config.settings, shape)
                model, hardware = model + number * one.model, hardware + number * one.hardware
        return cls(
            operations=Operations(model=model / world, hardware=hardware / world),
            padding=sizes[False] / (sum(sizes.values()) or 1),
        )


def operations(adapter: Adapter, model: Entry, settings: TrainSettings, shape: Sequence[int]) -> Operations:
    """What training takes on one sample of latents [channels, frames, height, width]."""
    whole = adapter.flops(model, shape)
    attention = 3 * attention_operations(model, shape)
    forward = (whole - adapter.flops(_without_blocks(model), shape)) / 3
    if settings.lora.enabled:
        whole -= (whole - attention) / 3
    again = _repeated(settings, layers=model.transformer.layers) * forward
    if settings.recompute.mode is RecomputeMode.SELECTIVE:
        kept = {"attention": attention / 3, "matmul": forward - attention / 3}
        again -= sum(kept.get(name, 0.0) for name in settings.recompute.save)
    return Operations(model=whole, hardware=whole + max(0.0, again))


def attention_operations(model: Entry, shape: Sequence[int]) -> float:
    """Those of a forward pass between queries, keys and values, of which there are no weights."""
    dims = model.transformer
    tokens = math.prod(shape[1:]) // math.prod(dims.patch)
    keys = model.text_length + (0 if model.image is None else model.image.given)
    return 4.0 * dims.layers * dims.hidden * tokens * (tokens + keys)


def _repeated(settings: TrainSettings, *, layers: int) -> float:
    """The share of the blocks that is computed again."""
    match settings.recompute.mode:
        case RecomputeMode.NONE:
            return 0.0
        case RecomputeMode.INTERVAL:
            return math.ceil(layers / settings.recompute.every) / layers
        case _:
            return 1.0


def _without_blocks(model: Entry) -> Entry:
    return model.model_copy(update={"transformer": model.transformer.model_copy(update={"layers": 0})})
