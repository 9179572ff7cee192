# SPDX-License-Identifier: Apache-2.0
"""Low-rank additions to the pretrained weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kinema_api.base import Model

LayerName = Annotated[str, Field(min_length=1, max_length=127, pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]


def ends_with(name: str, end: str) -> bool:
    """Whether a layer is meant by a target: its name, or the last parts of it."""
    return name == end or name.endswith(f".{end}")


class Lora(Model):
    """Train low-rank additions to some of the linear layers; the pretrained weights stay as they are."""

    enabled: bool = False
    """Train the additions in place of the weights. They are exported as pytorch_lora_weights.safetensors."""
    rank: int = Field(default=32, ge=1, le=4096)
    """Width of an addition."""
    alpha: float = Field(default=32, gt=0, le=65_536)
    """An addition counts alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's input features that a step leaves out of its addition, drawn for each step and layer."""
    targets: list[LayerName] = Field(default_factory=list, max_length=64)
    """Ends of the names of linear layers, for instance attn1.to_q or ffn.net.2; the projections of every attention when
    left out."""
