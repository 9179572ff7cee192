# SPDX-License-Identifier: Apache-2.0
"""Attention's kernels, compiled blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from kinema_api.attention import Attention
from kinema_api.exits import Exit, StageError
from kinema_api.recompute import Recompute, RecomputeMode
from kinema_trainer import tiny
from kinema_trainer.models import kernels, recompute

from tests.engine import SPEC


class Block(nn.Module):
    """Two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, tokens: Tensor, *, scale: float) -> Tensor:
        return tokens + scale * self.down(torch.nn.functional.gelu(self.up(tokens)))


def run(blocks: list[Block]) -> tuple[Tensor, list[Tensor]]:
    tokens = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for block in blocks:
        tokens = block(tokens, scale=0.5)
    tokens.square().sum().backward()
    return tokens.detach(), [p.grad for block in blocks for p in block.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", [RecomputeMode.NONE, RecomputeMode.FULL])
def test_blocks_of_one_class_are_compiled_once(mode: RecomputeMode) -> None:
    torch.manual_seed(0)
    plain = [Block() for _ in range(4)]
    compiled = [Block() for _ in range(4)]
    for block, other in zip(compiled, plain, strict=True):
        block.load_state_dict(other.state_dict())
    wanted, gradients = run(plain)
    torch._dynamo.reset()
    counter = CompileCounter()
    recompute.apply(compiled, Recompute(mode=mode))
    kernels.compile_blocks(compiled, backend=counter)
    found, own = run(compiled)
    assert counter.frame_count == 1
    assert torch.equal(found, wanted)
    assert len(own) == len(gradients) == 16
    assert all(torch.equal(one, other) for one, other in zip(own, gradients, strict=True))


@pytest.mark.parametrize("attention", [Attention.NATIVE, Attention.MATH, Attention.FLASH])
def test_attention_is_computed_by_the_kernel_that_was_chosen(attention: Attention) -> None:
    model = tiny.make_transformer(SPEC)
    kernels.choose_attention(model, attention)
    backends = {str(block.attn1.processor._attention_backend.value) for block in model.blocks}
    assert backends == {kernels.BACKENDS[attention]}


def test_attention_that_this_machine_does_not_have_is_refused() -> None:
    with pytest.raises(StageError, match="attention: npu does not work here") as caught:
        kernels.choose_attention(tiny.make_transformer(SPEC), Attention.NPU)
    assert caught.value.code is Exit.USER


def test_deterministic_mode_fails_rather_than_warns() -> None:
    try:
        kernels.use_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
