# SPDX-License-Identifier: Apache-2.0
"""The objective: its formulas, and that its draws depend on seed and position alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kinema_api.settings import Objective, TimestepSampling
from kinema_trainer import objective as flow
from kinema_trainer.models.wan import ADAPTER

SHAPE = torch.Size((16, 2, 4, 4))


def draws(objective: Objective, count: int, *, seed: int = 1) -> list[flow.Draw]:
    return [flow.draw(objective, shape=SHAPE, stream=flow.generator(seed=seed, position=n)) for n in range(count)]


@pytest.mark.parametrize(("u", "shift", "sigma"), [(0.5, 1.0, 0.5), (0.5, 3.0, 0.75), (0.2, 2.5, 5 / 13), (1, 5, 1)])
def test_shift(u: float, shift: float, sigma: float) -> None:
    assert float(flow.shifted(torch.tensor(u), shift=shift)) == pytest.approx(sigma)


def test_interpolation_runs_from_data_to_noise_and_the_target_is_its_derivative() -> None:
    latents, noise = torch.randn(2, *SHAPE, dtype=torch.float64), torch.randn(2, *SHAPE, dtype=torch.float64)
    at = [flow.interpolate(latents=latents, noise=noise, sigma=torch.full((2,), level)) for level in (0.0, 1.0, 0.3)]
    assert torch.equal(at[0], latents)
    assert torch.equal(at[1], noise)
    velocity = (at[1] - at[2]) / 0.7
    objective = Objective(weighted=False)
    losses = flow.loss(objective, prediction=velocity, latents=latents, noise=noise, sigma=torch.full((2,), 0.3))
    assert losses.max() < 1e-10


def test_loss_is_each_samples_mean_times_one_plus_shift_sigma() -> None:
    latents, noise = torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE)
    prediction = torch.stack([torch.zeros(SHAPE), torch.full(SHAPE, 3.0)])
    sigma = torch.tensor([0.0, 0.5])
    weighted = flow.loss(Objective(shift=4.0), prediction=prediction, latents=latents, noise=noise, sigma=sigma)
    assert weighted.tolist() == [1.0, 4.0 * (1 + 4.0 * 0.5)]
    plain = flow.loss(Objective(weighted=False), prediction=prediction, latents=latents, noise=noise, sigma=sigma)
    assert plain.tolist() == [1.0, 4.0]


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    first, again, other = draws(Objective(), 8), draws(Objective(), 8), draws(Objective(), 8, seed=2)
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one.noise, same.noise)
        assert one.sigma == same.sigma
        assert not torch.equal(one.noise, different.noise)
    assert len({float(draw.sigma) for draw in first}) == 8


def test_noise_stays_the_same_under_other_settings() -> None:
    other = Objective(timesteps=TimestepSampling.UNIFORM, shift=1.0, caption_dropout=1.0)
    for one, two in zip(draws(Objective(), 4), draws(other, 4), strict=True):
        assert torch.equal(one.noise, two.noise)


def test_uniform_draws_spread_evenly_and_logit_normal_ones_follow_their_normal() -> None:
    uniform = torch.stack([d.sigma for d in draws(Objective(timesteps=TimestepSampling.UNIFORM, shift=1.0), 2000)])
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(uniform.std()) == pytest.approx(12**-0.5, abs=0.02)
    normal = Objective(shift=1.0, uniform_mix=0.0, logit_mean=0.5, logit_std=0.7)
    logits = torch.logit(torch.stack([draw.sigma for draw in draws(normal, 2000)]).double())
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.06)
    assert float(logits.std()) == pytest.approx(0.7, abs=0.05)


def test_captions_are_dropped_at_the_given_rate() -> None:
    dropped = sum(draw.drop_caption for draw in draws(Objective(caption_dropout=0.25), 2000))
    assert dropped == pytest.approx(500, abs=70)
    assert not any(draw.drop_caption for draw in draws(Objective(caption_dropout=0.0), 200))


def test_timesteps_reach_the_sinusoid_in_float32_even_in_bfloat16() -> None:
    seen: dict[str, Any] = {}

    class Model(torch.nn.Module):
        def forward(self, **inputs: Any) -> tuple[torch.Tensor]:
            seen.update(inputs)
            return (inputs["hidden_states"],)

    latents = torch.randn(1, *SHAPE)
    output = ADAPTER.forward(
        Model(),
        latents=latents,
        sigma=torch.tensor([0.99873]),
        text=torch.zeros(1, 8, 8),
        dtype=torch.bfloat16,
    )
    assert seen["timestep"].dtype == torch.float32
    assert float(seen["timestep"]) == pytest.approx(998.73)
    assert seen["hidden_states"].dtype == torch.bfloat16
    assert output.dtype == torch.float32
