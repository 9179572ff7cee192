# SPDX-License-Identifier: Apache-2.0
"""Who computes attention, and where each can work."""

from __future__ import annotations

from kinema_api.base import Word
from kinema_api.pool import Accelerator


class Attention(Word):
    """Who computes attention, through diffusers' dispatcher: torch picks (native), or one of its kernels."""

    NATIVE = "native"
    FLASH = "flash"
    EFFICIENT = "efficient"
    CUDNN = "cudnn"
    MATH = "math"
    NPU = "npu"


_EVERYWHERE = frozenset(Accelerator)
WORKS_ON: dict[Attention, frozenset[Accelerator]] = {
    Attention.NATIVE: _EVERYWHERE,
    Attention.FLASH: frozenset({Accelerator.CPU, Accelerator.NVIDIA}),
    Attention.EFFICIENT: frozenset({Accelerator.NVIDIA}),
    Attention.CUDNN: frozenset({Accelerator.NVIDIA}),
    Attention.MATH: _EVERYWHERE,
    Attention.NPU: frozenset({Accelerator.ASCEND}),
}
"""The accelerators that have a kernel for training."""
HALF_ONLY = frozenset({Attention.FLASH, Attention.CUDNN})
"""Those that take bfloat16 but not float32."""


def refusal(attention: Attention, *, accelerator: Accelerator, half: bool) -> str | None:
    """Why attention cannot be computed so; None when it can.

    Args:
        attention: who computes it.
        accelerator: where.
        half: whether the model computes in bfloat16.
    """
    if accelerator not in WORKS_ON[attention]:
        able = [other.value for other, places in WORKS_ON.items() if accelerator in places]
        return f"{attention} has no kernel on {accelerator}; write one of {', '.join(able)}"
    if attention in HALF_ONLY and not half:
        return f"{attention} does not take float32; set precision to bf16, or write native"
    return None
