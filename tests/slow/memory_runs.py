# SPDX-License-Identifier: Apache-2.0
"""The trainings whose memory is planned and measured: a model of more than 1 GiB in six layouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kinema_api.catalogue import Entry, entry
from kinema_api.job import Task
from kinema_api.memory import block_parameters
from kinema_api.settings import ClipVideo, TrainSettings
from kinema_trainer.planning.plan import Request

LAYERS = 6
CLIP = ClipVideo(frames=1, height=256, width=512)
"""512 tokens."""


@dataclass(frozen=True)
class Run:
    """One training."""

    world: int
    layout: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


RUNS: dict[str, Run] = {
    "one process": Run(world=1, settings={"batchPerDevice": 2}),
    "fsdp2": Run(world=2, settings={"accumulate": 2, "recompute": {"mode": "full"}}),
    "copies": Run(world=2, layout={"replicate": 2, "shard": 1}),
    "tensor with sequence": Run(world=2, layout={"tensor": 2, "sequence": True}, settings={"ema": {"enabled": True}}),
    "ulysses x fsdp2": Run(world=4, layout={"ulysses": 2, "shard": 2}, settings={"batchPerDevice": 4}),
    "ring x tensor": Run(
        world=4,
        layout={"ring": 2, "tensor": 2},
        settings={"batchPerDevice": 2, "recompute": {"mode": "interval", "every": 2}},
    ),
}


def model() -> Entry:
    """Wan 2.1 1.3B with fewer blocks: 1.13 GiB of weights."""
    whole = entry("wan2.1-t2v-1.3b")
    left = whole.transformer.layers - LAYERS
    parameters = whole.transformer.parameters - left * block_parameters(whole)
    transformer = whole.transformer.model_copy(update={"layers": LAYERS, "parameters": parameters})
    return whole.model_copy(update={"transformer": transformer})


def request_of(run: Run) -> Request:
    """What is planned, and then run."""
    settings = TrainSettings.model_validate({"precision": "fp32", "layout": run.layout, **run.settings})
    return Request(model=model(), task=Task.T2V, settings=settings, video=CLIP, world=run.world)
