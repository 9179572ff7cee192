# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1, text to video, over diffusers' WanTransformer3DModel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn

from kinema_api.catalogue import Entry
from kinema_trainer.objective import TIMESTEPS


class WanAdapter:
    """See `kinema_trainer.models.Adapter`."""

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
        """The time embedder, as in diffusers' `_keep_in_fp32_modules`."""
        return [model.get_submodule("condition_embedder.time_embedder")]

    def recompute(self, model: nn.Module) -> None:
        """Diffusers' own gradient checkpointing, block by block."""
        transformer: Any = model
        transformer.enable_gradient_checkpointing()

    def forward(self, model: nn.Module, *, latents: Tensor, sigma: Tensor, text: Tensor, dtype: torch.dtype) -> Tensor:
        """The predicted velocity; the timestep stays float32 into the sinusoid."""
        with warnings.catch_warnings():
            # diffusers returns a view: a later change in place would break the backward pass, and there is none.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            output: Tensor = model(
                hidden_states=latents.to(dtype),
                timestep=TIMESTEPS * sigma.float(),
                encoder_hidden_states=text.to(dtype),
                return_dict=False,
            )[0]
        return output.float()

    def flops(self, model: Entry, shape: Sequence[int]) -> float:
        """Three times the matrix products of a forward pass; a multiply-add counts twice, attention is full.

        Not counted: time and modulation MLPs, norms, softmax, RoPE, biases, recomputation. Agrees with torch's
        FlopCounterMode over the diffusers class to five digits.
        """
        dims, text = model.transformer, model.text_length
        channels, frames, height, width = shape
        patch = math.prod(dims.patch)
        tokens = frames * height * width // patch
        hidden = dims.hidden
        attention = 8 * tokens * hidden**2 + 4 * tokens**2 * hidden
        cross = 4 * tokens * hidden**2 + 4 * text * hidden**2 + 4 * tokens * text * hidden
        block = attention + cross + 4 * tokens * hidden * dims.ffn
        ends = 2 * tokens * hidden * patch * (dims.in_channels + channels)
        caption = 2 * text * (dims.text_dim * hidden + hidden**2)
        return 3.0 * (dims.layers * block + ends + caption)


ADAPTER = WanAdapter()
