# SPDX-License-Identifier: Apache-2.0
"""In which number format processes add up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kinema_trainer.parallel import collectives, exchange
from kinema_trainer.parallel.collectives import Axis, Use

pytestmark = pytest.mark.unit


def test_the_gradient_of_a_factor_is_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the sum over many processes would lose what each of them adds."""
    seen: list[tuple[Use, torch.dtype]] = []

    def doubled(use: Use, tensor: Tensor, axis: Axis) -> Tensor:
        seen.append((use, tensor.dtype))
        return tensor.mul_(2)

    monkeypatch.setattr(collectives, "sum_over", doubled)
    factor = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    (exchange.shared_factor(factor, Axis(size=2)) * 3).sum().backward()
    assert seen == [(Use.ADDITION, torch.float32)]
    assert factor.grad is not None
    assert factor.grad.dtype is torch.bfloat16
    assert torch.equal(factor.grad, torch.full_like(factor, 6))


def test_a_process_alone_exchanges_nothing() -> None:
    factor = torch.ones(2, requires_grad=True)
    assert exchange.shared_factor(factor, Axis()) is factor
    assert exchange.shared(factor, Axis()) is factor
