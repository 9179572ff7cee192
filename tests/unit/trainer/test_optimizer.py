# SPDX-License-Identifier: Apache-2.0
"""AdamW's groups, clipping, the moving average."""

from __future__ import annotations

import pytest
import torch

from kinema_api.settings import Optimizer
from kinema_trainer import tiny
from kinema_trainer.optim.optimizer import MOMENTS, Average, clip, create_moments, make_optimizer

from tests.engine import SPEC


def test_only_matrices_decay() -> None:
    model = tiny.make_transformer(SPEC)
    adam = make_optimizer(model, Optimizer(weight_decay=0.3), fused=True)
    decay = {id(p): group["weight_decay"] for group in adam.param_groups for p in group["params"]}
    by_name = {name: decay[id(part.own)] for name, part in adam.parts.items()}
    assert by_name.keys() == dict(model.named_parameters()).keys()
    decayed = {name for name, value in by_name.items() if value == 0.3}
    assert "patch_embedding.weight" in decayed
    assert "blocks.0.attn1.to_q.weight" in decayed
    spared = ("bias", "norm_q.weight", "norm_k.weight", "norm2.weight", "scale_shift_table")
    assert {name for name in by_name if name.endswith(spared)} == by_name.keys() - decayed


def test_prepared_moments_change_nothing() -> None:
    def run(*, prepared: bool, fused: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        adam = make_optimizer(model, Optimizer(learning_rate=0.1), fused=fused)
        if prepared:
            create_moments(adam, step=0)
        for _ in range(3):
            model(torch.ones(1, 3)).square().sum().backward()
            adam.step()
            adam.zero_grad()
        assert all(set(MOMENTS) < state.keys() for state in adam.state.values())
        return model.weight.detach()

    for fused in (True, False):
        assert torch.equal(run(prepared=True, fused=fused), run(prepared=False, fused=fused))


@pytest.mark.parametrize(("limit", "left"), [(1.0, 1.0), (100.0, 5.0), (0.0, 5.0)])
def test_clip_returns_the_norm_before_and_scales_to_the_limit(limit: float, left: float) -> None:
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip(parameters, limit=limit) == pytest.approx(5.0)
    after = torch.cat([parameters[0].grad, parameters[1].grad]).norm()
    assert float(after) == pytest.approx(left, rel=1e-4)


def test_the_average_forgets_its_start_first_and_then_keeps_its_decay() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = Average(model, decay=0.5)
    torch.nn.init.ones_(model.weight)
    average.update(1)
    assert float(average.tensors["weight"]) == pytest.approx(1 - 2 / 11)
    for step in range(2, 40):
        before = float(average.tensors["weight"])
        average.update(step)
    assert 1 - float(average.tensors["weight"]) == pytest.approx((1 - before) * 0.5, rel=1e-3)
