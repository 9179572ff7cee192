# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1, for every task, over diffusers' WanTransformer3DModel."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn

from kinema_api import operations
from kinema_api.catalogue import Entry
from kinema_api.operations import Forward
from kinema_trainer.batch import Batch
from kinema_trainer.models import wan_forward
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.parallel.sequence import Share

_CUTS = (
    (re.compile(r"blocks\.\d+\.attn[12]\.(to_[qkv]|add_[kv]_proj)\.(weight|bias)"), 0),
    (re.compile(r"blocks\.\d+\.attn[12]\.norm_(q|k|added_k)\.weight"), 0),
    (re.compile(r"blocks\.\d+\.attn[12]\.to_out\.0\.weight"), 1),
    (re.compile(r"blocks\.\d+\.ffn\.net\.0\.proj\.(weight|bias)"), 0),
    (re.compile(r"blocks\.\d+\.ffn\.net\.2\.weight"), 1),
)


class WanAdapter:
    """See `kinema_trainer.models.Adapter`."""

    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")

    def build(self, config: Mapping[str, Any]) -> WanTransformer3DModel:
        """The transformer of a diffusers config."""
        return WanTransformer3DModel.from_config(dict(config))

    def restore_buffers(self, model: nn.Module, device: torch.device) -> None:
        """The rotary tables: non-persistent, so `to_empty` loses them."""
        config: Any = model.config
        rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
        model.rope = rope.to(device)

    def load(self, folder: Path) -> WanTransformer3DModel:
        """The transformer of a diffusers folder.

        Tensors are copied: those of a mapped file lie at odd addresses, where kernels sum in another order, so that
        results differ in the last bits from those of the same weights in a checkpoint.
        """
        model = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).eval()
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write config and sharded safetensors."""
        transformer: Any = model
        transformer.save_pretrained(folder, safe_serialization=True, max_shard_size="10GB")

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The transformer blocks."""
        blocks = model.blocks
        assert isinstance(blocks, nn.ModuleList)
        return list(blocks)

    def float32_modules(self, model: nn.Module) -> Sequence[nn.Module]:
        """The time embedder, of diffusers' `_keep_in_fp32_modules`.

        The norms and the tables of shift and scale compute in float32 too, but of parameters that are gathered, and so
        rounded, with their block's.
        """
        return [model.get_submodule("condition_embedder.time_embedder")]

    def prepare(self, model: nn.Module) -> None:
        """Let the model take batches; before anything else is done to it, and once."""
        wan_forward.bind(model)

    def cuts(self, model: nn.Module) -> Mapping[str, int]:
        """Matrices before heads and before the activation by their outputs, those behind by their inputs."""
        names = [name for name, _ in model.named_parameters()]
        return {name: dim for name in names for pattern, dim in _CUTS if pattern.fullmatch(name)}

    def whole_batch(self, name: str) -> bool:
        """What embeds time, caption and image is used by all tokens."""
        return name.startswith("condition_embedder.")

    def forward(self, model: nn.Module, batch: Batch, *, mesh: Mesh | None = None, dtype: torch.dtype) -> Tensor:
        """The predicted velocity of this process's tokens; the timestep stays float32 into the sinusoid."""
        wan_forward.bind(model)
        with warnings.catch_warnings():
            # The result may be a view: a later change in place would break the backward pass, and there is none.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            output: Tensor = model(batch, mesh or Mesh(), dtype)
        return output.float()

    def share(self, model: nn.Module, batch: Batch, *, mesh: Mesh | None = None) -> Share:
        """Which tokens of each sample this process predicts."""
        mesh = mesh or Mesh()
        return Share(wan_forward.lengths_of(batch, patch=self.patch(model)), mesh.layout, mesh.rank)

    def patch(self, model: nn.Module) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a token."""
        config: Any = model.config
        frames, height, width = config.patch_size
        return frames, height, width

    def flops(self, model: Entry, shape: Sequence[int]) -> Forward:
        """Operations of a forward pass over one sample."""
        return operations.forward(model, tokens=math.prod(shape[1:]) // math.prod(model.transformer.patch))


ADAPTER = WanAdapter()
