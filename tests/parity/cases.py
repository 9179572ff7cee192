# SPDX-License-Identifier: Apache-2.0
"""What is compared: tiny Wans, unequal clips, and the layouts that have to agree with one process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kinema_api.settings import TrainSettings
from kinema_trainer.batch import Batch, Condition, Example

TEXT = 512
"""Caption tokens; diffusers takes what comes before the last 512 for image tokens."""
CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 128,
    "num_layers": 4,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "t2v": CONFIG,
    "i2v": {**CONFIG, "in_channels": 36, "image_dim": 16, "added_kv_proj_dim": 96},
}
PACKS = 4
"""Forward passes of one process for an optimizer step; more processes with clips of their own make fewer each."""
STEPS = 5
RAGGED = ((3, 4, 6), (1, 6, 4), (2, 2, 10), (3, 2, 2), (1, 4, 4), (2, 6, 6), (3, 4, 4), (1, 2, 6))
"""Latent frames, rows and columns of each clip; hardly anything divides by the number of processes."""
EVEN = ((2, 4, 8),) * 8
FEWEST = ((1, 2, 2), (1, 2, 4)) * 4
"""Clips of one token and of two: with four processes some have none of a pack."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "DDP": {"replicate": 2, "shard": 1},
    "FSDP2": {"shard": 2},
    "HSDP": {"replicate": 2, "shard": 2},
    "TP": {"tensor": 2},
    "TP+SP": {"tensor": 2, "sequence": True},
    "Ulysses": {"ulysses": 2},
    "ring": {"ring": 2},
    "TP x FSDP2": {"tensor": 2, "shard": 2},
    "TP x Ulysses": {"tensor": 2, "ulysses": 2},
    "Ulysses x FSDP2": {"ulysses": 2, "shard": 2},
    "ring x FSDP2": {"ring": 2, "shard": 2},
    "HSDP x Ulysses": {"replicate": 2, "shard": 2, "ulysses": 2},
    "Ulysses x ring x TP": {"ulysses": 2, "ring": 2, "tensor": 2},
}
"""The layouts that the project promises."""
MORE_LAYOUTS: dict[str, dict[str, Any]] = {
    "DDP, 4": {"replicate": 4, "shard": 1},
    "FSDP2, 4": {"shard": 4},
    "TP, 4": {"tensor": 4},
    "TP+SP, 4": {"tensor": 4, "sequence": True},
    "Ulysses, 4": {"ulysses": 4},
    "ring, 4": {"ring": 4},
    "ring, 3": {"ring": 3},
    "DDP x ring": {"replicate": 2, "shard": 1, "ring": 2},
    "TP+SP x FSDP2": {"tensor": 2, "sequence": True, "shard": 2},
    "TP+SP x HSDP": {"tensor": 2, "sequence": True, "replicate": 2, "shard": 2},
    "TP+SP x Ulysses x ring": {"tensor": 2, "sequence": True, "ulysses": 2, "ring": 2},
    "TP+SP x ring x FSDP2": {"tensor": 2, "sequence": True, "ring": 2, "shard": 2},
}
"""Others that are easy to get wrong."""


def world(layout: dict[str, Any]) -> int:
    """Processes of a layout."""
    count = 1
    for axis, size in layout.items():
        count *= 1 if axis == "sequence" else size
    return count


@dataclass(frozen=True, eq=False)
class Case:
    """One layout, one model.

    Args:
        task: t2v or i2v.
        layout: as in `stages.train.layout`.
        shapes: of the clips, two to a pack.
        steps: optimizer steps; 0 compares the gradients of one.
        broken: an exchange of `tests.parity.mutations` to break, and how.
        settings: others of `stages.train`.
    """

    task: str = "t2v"
    layout: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, int, int], ...] = RAGGED
    steps: int = 0
    broken: tuple[str, str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        axes = ", ".join(f"{axis} {size}" for axis, size in self.layout.items())
        more = [self.settings and str(self.settings), self.steps and f"{self.steps} steps"]
        return "; ".join([self.task, axes, *(str(one) for one in more if one)])

    @property
    def world(self) -> int:
        """Processes."""
        return world(self.layout)

    @property
    def alone(self) -> Case:
        """The same in one process."""
        return Case(task=self.task, shapes=self.shapes, steps=self.steps, settings=self.settings)

    def train(self, *, data: int) -> TrainSettings:
        """The settings; clipping bites at every step."""
        return TrainSettings.model_validate(
            {
                "steps": STEPS,
                "accumulate": PACKS // data,
                "precision": "fp32",
                "layout": self.layout,
                "optimizer": {"learningRate": 0.001, "clipNorm": 0.01, "weightDecay": 0.1},
                "schedule": {"kind": "constant", "warmupSteps": 0},
                "ema": {"enabled": True, "decay": 0.9},
                **self.settings,
            }
        )


def packs(case: Case, *, step: int) -> list[Batch]:
    """The packs of an optimizer step."""
    examples = [make(case.task, shape, seed=1000 * step + index) for index, shape in enumerate(case.shapes)]
    return [tuple(examples[index : index + 2]) for index in range(0, len(examples), 2)]


def make(task: str, shape: tuple[int, int, int], *, seed: int, clean: Tensor | None = None) -> Example:
    """A clip with everything drawn."""
    stream = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=stream)

    condition = Condition(clean=clean)
    if task == "i2v":
        condition = Condition(channels=draw(20, *shape), image=draw(5, 16), clean=clean)
    return Example(
        key=f"clip-{seed}",
        latents=draw(16, *shape),
        noise=draw(16, *shape),
        sigma=torch.rand((), generator=stream) * 0.9 + 0.05,
        text=draw(TEXT, 16),
        condition=condition,
    )
