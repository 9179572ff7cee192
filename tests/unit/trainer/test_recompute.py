# SPDX-License-Identifier: Apache-2.0
"""Recomputation: whatever is kept, losses and gradients are the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from kinema_api.exits import Exit, StageError
from kinema_api.recompute import Recompute, RecomputeMode
from kinema_trainer.models import recompute

WIDTH, TOKENS, BLOCKS = 16, 12, 5


class Block(nn.Module):
    """Attention and a small MLP; counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.passes = 0

    def forward(self, tokens: Tensor, *, scale: float) -> Tensor:
        self.passes += 1
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + scale * mixed
        return tokens + self.down(functional.gelu(self.up(tokens)))


def blocks() -> list[Block]:
    torch.manual_seed(0)
    return [Block() for _ in range(BLOCKS)]


def inputs() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def run(made: list[Block]) -> tuple[Tensor, list[Tensor]]:
    """Loss and all gradients."""
    tokens = given = inputs()
    for block in made:
        tokens = block(tokens, scale=0.5)
    loss = tokens.square().mean()
    loss.backward()
    gradients = [parameter.grad for block in made for parameter in block.parameters()]
    assert given.grad is not None and all(gradient is not None for gradient in gradients)
    return loss.detach(), [given.grad, *[gradient for gradient in gradients if gradient is not None]]


SETTINGS = {
    "full": Recompute(mode=RecomputeMode.FULL),
    "selective": Recompute(mode=RecomputeMode.SELECTIVE),
    "selective of named operators": Recompute(
        mode=RecomputeMode.SELECTIVE, save=["matmul", "aten.gelu.default", "aten._softmax"]
    ),
    "selective of nothing": Recompute(mode=RecomputeMode.SELECTIVE, save=[]),
    "interval": Recompute(mode=RecomputeMode.INTERVAL, every=2),
    "offload": Recompute(offload=True),
    "full and offload": Recompute(mode=RecomputeMode.FULL, offload=True),
    "selective and offload": Recompute(mode=RecomputeMode.SELECTIVE, offload=True),
    "interval and offload": Recompute(mode=RecomputeMode.INTERVAL, every=3, offload=True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradients_are_the_same_bits(name: str) -> None:
    wanted_loss, wanted = run(blocks())
    sparing = blocks()
    recompute.apply(sparing, SETTINGS[name])
    loss, gradients = run(sparing)
    assert torch.equal(loss, wanted_loss)
    assert all(torch.equal(found, one) for found, one in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        (Recompute(), [1, 1, 1, 1, 1]),
        (Recompute(mode=RecomputeMode.FULL), [2, 2, 2, 2, 2]),
        (Recompute(mode=RecomputeMode.INTERVAL, every=2), [2, 1, 2, 1, 2]),
        (Recompute(mode=RecomputeMode.INTERVAL, every=3), [2, 1, 1, 2, 1]),
        (Recompute(offload=True), [1, 1, 1, 1, 1]),
    ],
)
def test_the_blocks_that_are_meant_are_computed_again(settings: Recompute, passes: list[int]) -> None:
    made = blocks()
    recompute.apply(made, settings)
    run(made)
    assert [block.passes for block in made] == passes


class Counted(TorchDispatchMode):
    """Counts the calls of an operator."""

    def __init__(self, operation: object) -> None:
        super().__init__()
        self.operation = operation
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += func is self.operation
        return func(*args, **(kwargs or {}))


def calls(settings: Recompute, operation: object) -> int:
    made = blocks()
    recompute.apply(made, settings)
    with Counted(operation) as counted:
        run(made)
    return counted.calls


def test_saved_operations_are_not_made_again() -> None:
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    gelu = torch.ops.aten.gelu.default
    full = Recompute(mode=RecomputeMode.FULL)
    saving = Recompute(mode=RecomputeMode.SELECTIVE, save=["attention"])
    assert calls(full, attention) == calls(full, gelu) == 2 * BLOCKS
    assert calls(saving, attention) == BLOCKS
    assert calls(saving, gelu) == 2 * BLOCKS


def kept(settings: Recompute, wanted: Callable[[Tensor], bool]) -> list[Tensor]:
    """What a forward pass has saved for the backward pass."""
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if wanted(tensor):
            found.append(tensor)
        return tensor

    made = blocks()
    recompute.apply(made, settings)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens = inputs()
        for block in made:
            tokens = block(tokens, scale=0.5)
    return found


def test_full_keeps_the_inputs_of_blocks_alone() -> None:
    everything = Recompute()
    full = Recompute(mode=RecomputeMode.FULL)
    assert len(kept(full, lambda tensor: True)) == BLOCKS
    assert len(kept(everything, lambda tensor: True)) > 5 * BLOCKS


def test_offload_copies_activations_and_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    original = recompute._Kept.__init__

    def init(self: recompute._Kept, tensor: Tensor) -> None:
        copied.append(recompute._address(tensor))
        original(self, tensor)

    monkeypatch.setattr(recompute._Kept, "__init__", init)
    made = blocks()
    recompute.apply(made, Recompute(offload=True))
    run(made)
    weights = {parameter.untyped_storage().data_ptr() for block in made for parameter in block.parameters()}
    assert len(copied) > 5 * BLOCKS
    assert not weights & set(copied)


def test_without_gradients_nothing_is_kept() -> None:
    made = blocks()
    recompute.apply(made, Recompute(mode=RecomputeMode.SELECTIVE, offload=True))
    with torch.no_grad():
        found = made[0](inputs(), scale=0.5)
    assert found.grad_fn is None
    assert made[0].passes == 1


@pytest.mark.parametrize("name", ["aten.no_such", "aten.gelu.no_such", "nowhere.gelu", "gelu"])
def test_an_operator_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(StageError, match=f"no operator {name};") as caught:
        recompute.apply(blocks(), Recompute(mode=RecomputeMode.SELECTIVE, save=[name]))
    assert caught.value.code is Exit.USER
