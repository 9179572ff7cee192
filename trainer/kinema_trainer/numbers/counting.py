# SPDX-License-Identifier: Apache-2.0
"""Operations of an optimizer step, by those of its clips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kinema_api.catalogue import Entry
from kinema_api.operations import Operations, training
from kinema_api.settings import TrainSettings
from kinema_api.stage import TrainConfig
from kinema_trainer.data.course import Step
from kinema_trainer.models import Adapter


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
    return training(adapter.flops(model, shape), settings, layers=model.transformer.layers)
