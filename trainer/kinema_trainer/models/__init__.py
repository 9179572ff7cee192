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
from kinema_api.operations import Forward
from kinema_trainer.batch import Batch
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.parallel.sequence import Share


class Adapter(Protocol):
    """What a family gives the trainer."""

    lora_targets: Sequence[str]
    """The ends of the names of the layers that LoRA adds to when nobody says which."""

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

    def prepare(self, model: nn.Module) -> None:
        """Let the model take batches; before anything else is done to it, and once."""

    def cuts(self, model: nn.Module) -> Mapping[str, int]:
        """The parameters that tensor parallelism cuts, by name, and the dimension along which."""

    def whole_batch(self, name: str) -> bool:
        """Whether every tensor process has an uncut parameter's gradient over all tokens.

        With sequence parallelism the others have it over each process's own tokens.
        """

    def patch(self, model: nn.Module) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a token."""

    def share(self, model: nn.Module, batch: Batch, *, mesh: Mesh | None = None) -> Share:
        """Which tokens of each sample this process predicts."""

    def forward(self, model: nn.Module, batch: Batch, *, mesh: Mesh | None = None, dtype: torch.dtype) -> Tensor:
        """The predicted velocity of this process's tokens, in float32.

        Args:
            model: the transformer; its modules compute in `dtype`.
            batch: the samples; every process that shares them has them whole.
            mesh: who shares; this process alone when left out.
            dtype: the number format of the computation.

        Returns:
            [tokens, features], as `kinema_trainer.objectives.flow.tokens` orders them: the rows of `share`, sample by
            sample.
        """

    def flops(self, model: Entry, shape: Sequence[int]) -> Forward:
        """Operations of a forward pass over one sample of latents [channels, frames, height, width]."""


_MODULES = {"wan2.1": "kinema_trainer.models.wan"}


def adapter(model: Entry) -> Adapter:
    """The adapter of a model's family."""
    module = _MODULES.get(model.family)
    if module is None:
        raise StageError(Exit.USER, f"the native engine has no adapter for {model.family}; it trains {list(_MODULES)}")
    return cast(Adapter, importlib.import_module(module).ADAPTER)
