# SPDX-License-Identifier: Apache-2.0
"""The objective: its formulas, and that its draws depend on seed and position alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kinema_api.objective import Masks, Objective, TimestepSampling, Weighting
from kinema_trainer.batch import Condition, Example
from kinema_trainer.objectives import flow

SHAPE = torch.Size((16, 2, 4, 4))
PATCH = (1, 2, 2)


def draws(objective: Objective, count: int, *, seed: int = 1) -> list[flow.Draw]:
    return [flow.draw(objective, shape=SHAPE, stream=flow.generator(seed=seed, position=n)) for n in range(count)]


def example(*, shape: tuple[int, ...] = (4, 5, 4, 6), sigma: float = 0.25, clean: list[bool] | None = None) -> Example:
    stream = torch.Generator().manual_seed(11)
    return Example(
        key="clip",
        latents=torch.randn(shape, generator=stream),
        noise=torch.randn(shape, generator=stream),
        sigma=torch.tensor(sigma),
        text=torch.zeros(2, 3),
        condition=Condition(clean=None if clean is None else torch.tensor(clean)),
    )


@pytest.mark.parametrize(("u", "shift", "sigma"), [(0.5, 1.0, 0.5), (0.5, 3.0, 0.75), (0.2, 2.5, 5 / 13), (1, 5, 1)])
def test_shift(u: float, shift: float, sigma: float) -> None:
    assert float(flow.shifted(torch.tensor(u), shift=shift)) == pytest.approx(sigma)


def test_the_target_is_the_slope_of_the_path_from_data_to_noise() -> None:
    start, end = flow.noisy(example(sigma=0.0)), flow.noisy(example(sigma=1.0))
    assert torch.equal(start, example().latents)
    assert torch.equal(end, example().noise)
    slope = (end - flow.noisy(example(sigma=0.25))) / 0.75
    wanted = flow.target(example(), sign=1.0, patch=PATCH)
    torch.testing.assert_close(wanted, flow.tokens(slope, patch=PATCH), atol=1e-5, rtol=0)
    assert torch.equal(flow.target(example(), sign=-1.0, patch=PATCH), -wanted)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 3), (1, 1, 1)])
def test_tokens_are_those_of_wans_head(patch: tuple[int, int, int]) -> None:
    latents = torch.randn(4, 6, 4, 6)
    rows = flow.tokens(latents, patch=patch)
    t, h, w = patch
    assert rows.shape == (latents.numel() // (4 * t * h * w), 4 * t * h * w)
    # The second token lies one patch to the right; its features run over the patch, channels last.
    first = latents[:, :t, :h, w : 2 * w].permute(1, 2, 3, 0).flatten()
    assert torch.equal(rows[1], first)
    assert torch.equal(flow.latents_of(rows, shape=latents.shape, patch=patch), latents)


def test_a_samples_loss_is_its_mean_squared_error_times_its_weights() -> None:
    objective = Objective(weighting=Weighting.SHIFT, shift=4.0)
    sample = replace(example(sigma=0.5), weight=0.25)
    wanted = flow.target(sample, sign=1.0, patch=PATCH)
    weights = flow.token_weights(objective, sample, patch=PATCH)
    loss = flow.squared_error(wanted + 3.0, wanted, weights)
    assert float(loss) == pytest.approx(9.0 * (1 + 4.0 * 0.5) * 0.25, rel=1e-6)


def test_any_split_of_the_tokens_adds_up_to_the_same_loss() -> None:
    sample = example(clean=[True, False, False, True, False])
    wanted = flow.target(sample, sign=1.0, patch=PATCH)
    weights = flow.token_weights(Objective(), sample, patch=PATCH)
    prediction = torch.randn_like(wanted)
    whole = float(flow.squared_error(prediction, wanted, weights))
    for cuts in ([7, 23], [1, 29], [10, 20]):
        pieces = zip(*(torch.tensor_split(rows, cuts) for rows in (prediction, wanted, weights)), strict=True)
        assert sum(float(flow.squared_error(*piece)) for piece in pieces) == pytest.approx(whole, rel=1e-6)


def test_clean_frames_are_the_data_at_sigma_zero_and_carry_no_loss() -> None:
    sample = example(clean=[True, True, False, False, True])
    assert flow.frame_sigmas(sample).tolist() == [0, 0, 0.25, 0.25, 0]
    mixed = flow.noisy(sample)
    assert torch.equal(mixed[:, [0, 1, 4]], sample.latents[:, [0, 1, 4]])
    assert torch.equal(mixed[:, [2, 3]], flow.noisy(example())[:, [2, 3]])
    weights = flow.token_weights(Objective(weighting=Weighting.NONE), sample, patch=PATCH).view(5, 6)
    assert not weights[[0, 1, 4]].any()
    features = 4 * 2 * 2
    assert float(weights.sum() * features) == pytest.approx(1.0), "a mean over what is left"


def test_a_token_cannot_be_half_clean() -> None:
    sample = example(shape=(4, 4, 4, 6), clean=[True, False, False, False])
    with pytest.raises(ValueError, match="partly clean"):
        flow.token_weights(Objective(), sample, patch=(2, 2, 2))
    both = example(shape=(4, 4, 4, 6), clean=[True, True, False, False])
    weights = flow.token_weights(Objective(weighting=Weighting.NONE), both, patch=(2, 2, 2))
    assert float(weights.sum() * 4 * 8) == pytest.approx(1.0)


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    first, again, other = draws(Objective(), 8), draws(Objective(), 8), draws(Objective(), 8, seed=2)
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one.noise, same.noise)
        assert one.sigma == same.sigma
        assert not torch.equal(one.noise, different.noise)
    assert len({float(draw.sigma) for draw in first}) == 8


@pytest.mark.parametrize(
    "settings",
    [
        {"timesteps": TimestepSampling.UNIFORM, "shift": 1.0, "caption_dropout": 1.0},
        {"timesteps": TimestepSampling.MODE, "uniform_mix": 0.0, "masks": Masks(random=1)},
        {"preset": "mug-v"},
    ],
)
def test_the_same_numbers_are_consumed_whatever_the_settings(settings: dict[str, Any]) -> None:
    for position in range(4):
        streams = [flow.generator(seed=1, position=position) for _ in range(2)]
        one = flow.draw(Objective(), shape=SHAPE, stream=streams[0])
        two = flow.draw(Objective.model_validate(settings), shape=SHAPE, stream=streams[1])
        assert torch.equal(one.noise, two.noise)
        assert torch.equal(streams[0].get_state(), streams[1].get_state())


def test_captions_are_dropped_at_the_given_rate() -> None:
    dropped = sum(draw.drop_caption for draw in draws(Objective(caption_dropout=0.25), 2000))
    assert dropped == pytest.approx(500, abs=70)
    assert not any(draw.drop_caption for draw in draws(Objective(caption_dropout=0.0), 200))
