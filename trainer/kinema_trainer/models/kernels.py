# SPDX-License-Identifier: Apache-2.0
"""Which kernels compute: attention's, compiled blocks, and those that give the same bits every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kinema_api.attention import Attention
from kinema_api.exits import Exit, StageError

BACKENDS: dict[Attention, str] = {
    Attention.NATIVE: "native",
    Attention.FLASH: "_native_flash",
    Attention.EFFICIENT: "_native_efficient",
    Attention.CUDNN: "_native_cudnn",
    Attention.MATH: "_native_math",
    Attention.NPU: "_native_npu",
}
"""The names of diffusers' dispatcher."""


def choose_attention(model: nn.Module, attention: Attention) -> None:
    """Let a diffusers model compute attention with one of the dispatcher's kernels.

    Raises:
        StageError: it does not work here.
    """
    transformer: Any = model
    try:
        transformer.set_attention_backend(BACKENDS[attention])
    except (RuntimeError, ValueError) as error:
        raise StageError(Exit.USER, f"stages.train.attention: {attention} does not work here ({error})") from error


def compile_blocks(blocks: Sequence[nn.Module], **options: Any) -> None:
    """Compile the forward pass of blocks of one class: the first one, whose code the others then use.

    What shards and gathers them stays outside; so it is called before they are wrapped.
    """
    for block in blocks:
        vars(block)["forward"] = torch.compile(block.forward, **options)


def use_deterministic() -> None:
    """Let everything fail that has no kernel which gives the same bits every time."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
