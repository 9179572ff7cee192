# SPDX-License-Identifier: Apache-2.0
"""Model adapters: all that the trainer has to know of a family, over diffusers' own classes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from kinema_api.catalogue import Entry
from kinema_api.exits import Exit, StageError


class Adapter(Protocol):
    """What a family gives the trainer."""

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The transformer of a diffusers config. May be called under `torch.device("meta")`."""

    def restore_buffers(self, model: nn.Module, device: torch.device) -> None:
        """Compute the buffers that no checkpoint holds, after `to_empty`."""

    def load(self, folder: Path) -> nn.Module:
        """The transformer of a diffusers folder, in float32 on the CPU."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a diffusers folder."""

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The repeated blocks, in forward order: units of sharding and of recomputation."""

    def float32_modules(self, model: nn.Module) -> Sequence[nn.Module]:
        """Small modules that compute in float32 whatever the precision."""

    def recompute(self, model: nn.Module) -> None:
        """Keep only the inputs of blocks for the backward pass."""

    def forward(self, model: nn.Module, *, latents: Tensor, sigma: Tensor, text: Tensor, dtype: torch.dtype) -> Tensor:
        """The predicted velocity in float32.

        Shapes: latents and the result [batch, channels, frames, height, width]; sigma [batch], float32;
        text [batch, tokens, width].
        """

    def flops(self, model: Entry, shape: Sequence[int]) -> float:
        """Operations that training takes on one sample of latents [channels, frames, height, width]."""


_MODULES = {"wan2.1": "kinema_trainer.models.wan"}


def adapter(model: Entry) -> Adapter:
    """The adapter of a model's family."""
    module = _MODULES.get(model.family)
    if module is None:
        raise StageError(Exit.USER, f"the native engine has no adapter for {model.family}; it trains {list(_MODULES)}")
    return cast(Adapter, importlib.import_module(module).ADAPTER)
