# SPDX-License-Identifier: Apache-2.0
"""Presets against closed forms: the distribution of sigma, the shift, the weight and the loss of each."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kinema_api.objective import Objective, ObjectivePreset, ShiftKind, TimestepSampling, Weighting
from kinema_trainer.batch import Example
from kinema_trainer.objectives import flow

DRAWS = 4000
KS = 1.63 / math.sqrt(DRAWS)
"""Kolmogorov's bound: a sample of the distribution itself exceeds it once in a hundred."""
SHAPE = (1, 3, 24, 40)
MAXDIFFUSION_FLOOR = 0.003 / 1.002

Cdf = Callable[[float], float]


def phi(x: float) -> float:
    """The standard normal's distribution function."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def logit(u: float) -> float:
    return math.log(u / (1 - u))


def unshifted(t: float, shift: float) -> float:
    """Undo the shift: u of t = shift u / (1 + (shift - 1) u)."""
    return t / (shift - (shift - 1) * t)


def mode_cdf(x: float, scale: float) -> float:
    """P(u <= x) of u = 1 - v - scale (cos^2(pi v / 2) - 1 + v), which falls from 1 to 0 as the uniform v rises."""
    low, high = 0.0, 1.0
    for _ in range(60):
        v = (low + high) / 2
        if 1 - v - scale * (math.cos(math.pi * v / 2) ** 2 - 1 + v) > x:
            low = v
        else:
            high = v
    return 1 - low


def mug_v_shift() -> float:
    """By the area in pixels beside 512 x 512, and the latent frames."""
    _, frames, height, width = SHAPE
    return math.sqrt(8 * height * 8 * width / 512**2) * math.sqrt(frames)


CDFS: dict[ObjectivePreset, Cdf] = {
    ObjectivePreset.DFM_PRETRAIN: lambda sigma: (
        0.2 * unshifted(sigma, 2.5) + 0.8 * phi(logit(unshifted(sigma, 2.5)) / 1.5)
    ),
    ObjectivePreset.DFM_FINETUNE: lambda sigma: unshifted(sigma, 3.0),
    ObjectivePreset.MUG_V: lambda sigma: phi(logit(unshifted(sigma, mug_v_shift()))),
    ObjectivePreset.MAXDIFFUSION: lambda sigma: unshifted(
        max(0.0, sigma - MAXDIFFUSION_FLOOR) / (1 - MAXDIFFUSION_FLOOR), 3.0
    ),
}


def sigmas(objective: Objective, count: int = DRAWS) -> list[float]:
    """Sigma of the first samples of a run."""
    return [
        float(flow.draw(objective, shape=SHAPE, stream=flow.generator(seed=5, position=n)).sigma) for n in range(count)
    ]


def distance(found: list[float], cdf: Cdf) -> float:
    """The largest distance between an empirical distribution function and a given one (Kolmogorov, Smirnov)."""
    values = sorted(found)
    expected = np.array([cdf(value) for value in values])
    above = np.arange(1, len(values) + 1) / len(values) - expected
    below = expected - np.arange(len(values)) / len(values)
    return float(max(above.max(), below.max()))


@pytest.mark.parametrize("preset", list(ObjectivePreset))
def test_sigma_has_the_presets_distribution_and_no_other(preset: ObjectivePreset) -> None:
    found = sigmas(Objective(preset=preset))
    assert 0 < min(found) <= max(found) <= 1
    distances = {name: distance(found, cdf) for name, cdf in CDFS.items()}
    assert distances.pop(preset) < KS
    # DFM's finetune and MaxDiffusion differ by a floor of 0.003 alone.
    twins = {ObjectivePreset.DFM_FINETUNE, ObjectivePreset.MAXDIFFUSION}
    others = {name: gap for name, gap in distances.items() if not {name, preset} <= twins}
    assert min(others.values()) > 1.5 * KS


def test_maxdiffusions_floor() -> None:
    found = sigmas(Objective(preset=ObjectivePreset.MAXDIFFUSION))
    assert min(found) >= MAXDIFFUSION_FLOOR * (1 - 1e-6)
    assert min(sigmas(Objective(preset=ObjectivePreset.DFM_FINETUNE))) < MAXDIFFUSION_FLOOR
    recipe = Objective(preset=ObjectivePreset.MAXDIFFUSION).recipe
    # u = 1/2 -> t = 3/4 -> sigma = 1/4 of the floor and 3/4.
    sigma = flow.sigma_of(recipe, torch.tensor(0.5, dtype=torch.float64), shift=3.0)
    assert float(sigma) == pytest.approx(0.75 + 0.25 * MAXDIFFUSION_FLOOR, rel=1e-12)


@pytest.mark.parametrize("scale", [1.29, 0.0, -0.5])
def test_mode(scale: float) -> None:
    objective = Objective(timesteps=TimestepSampling.MODE, mode_scale=scale, uniform_mix=0.0, shift=1.0)
    assert distance(sigmas(objective), lambda sigma: mode_cdf(sigma, scale)) < KS


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.7), (-1.0, 2.0)])
def test_explicit_fields_override_the_preset(mean: float, std: float) -> None:
    objective = Objective(preset=ObjectivePreset.DFM_PRETRAIN, logit_mean=mean, logit_std=std, uniform_mix=0, shift=1)
    assert distance(sigmas(objective), lambda sigma: phi((logit(sigma) - mean) / std)) < KS
    assert objective.recipe.weighting is Weighting.SHIFT, "the rest is the preset's"


@pytest.mark.parametrize(
    ("preset", "shift"),
    [
        (ObjectivePreset.DFM_PRETRAIN, 2.5),
        (ObjectivePreset.DFM_FINETUNE, 3.0),
        (ObjectivePreset.MUG_V, math.sqrt(720 * 1280 / 512**2) * math.sqrt(10)),
        (ObjectivePreset.MAXDIFFUSION, 3.0),
    ],
)
def test_the_shift_of_720_rows_and_10_latent_frames(preset: ObjectivePreset, shift: float) -> None:
    found = flow.shift_of(Objective(preset=preset).recipe, shape=(16, 10, 90, 160), spatial=8)
    assert found == pytest.approx(shift, rel=1e-12)


def test_mug_vs_shift_follows_area_and_duration() -> None:
    recipe = Objective(preset=ObjectivePreset.MUG_V).recipe
    assert flow.shift_of(recipe, shape=(16, 1, 64, 64), spatial=8) == 1.0
    assert flow.shift_of(recipe, shape=(16, 4, 64, 64), spatial=8) == 2.0
    assert flow.shift_of(recipe, shape=(16, 1, 128, 128), spatial=8) == 2.0
    assert flow.shift_of(recipe, shape=(16, 10, 90, 160), spatial=8) == pytest.approx(5.93, abs=0.005)
    doubled = Objective(preset=ObjectivePreset.DFM_FINETUNE, shift_kind=ShiftKind.SIZE, shift=2.0).recipe
    assert flow.shift_of(doubled, shape=(16, 4, 64, 64), spatial=8) == 4.0


def bell(sigma: float) -> float:
    """The weight of a noise level: the bump over 1000 levels whose u is evenly spread from the floor to 1."""
    u = np.linspace(MAXDIFFUSION_FLOOR, 1.0, 1000)
    levels = 3 * u / (1 + 2 * u)
    bump = np.exp(-2 * ((1000 * levels - 500) / 1000) ** 2)
    weights = (bump - bump.min()) * 1000 / (bump - bump.min()).sum()
    return float(weights[np.abs(levels - sigma).argmin()])


SIGMAS = [MAXDIFFUSION_FLOOR, 0.01, 0.25, 0.5, 0.737, 0.99, 1.0]
WEIGHTS: dict[ObjectivePreset, Callable[[float], float]] = {
    ObjectivePreset.DFM_PRETRAIN: lambda sigma: 1 + 2.5 * sigma,
    ObjectivePreset.DFM_FINETUNE: lambda sigma: 1 + 3.0 * sigma,
    ObjectivePreset.MUG_V: lambda sigma: 1.0,
    ObjectivePreset.MAXDIFFUSION: bell,
}


@pytest.mark.parametrize("preset", list(ObjectivePreset))
def test_the_weight_of_each_noise_level(preset: ObjectivePreset) -> None:
    found = flow.weight_of(Objective(preset=preset), sigma=torch.tensor(SIGMAS), shape=SHAPE)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([WEIGHTS[preset](sigma) for sigma in SIGMAS], rel=1e-6, abs=1e-9)


def test_the_bell_is_a_table_of_mean_one_that_is_nowhere_undefined() -> None:
    levels, weights = flow.bell(3.0, MAXDIFFUSION_FLOOR)
    assert len(levels) == 1000
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-12)
    assert float(weights.min()) == 0.0
    assert float(levels[weights.argmax()]) == pytest.approx(0.5, abs=2e-3)
    alone = flow.weight_of(Objective(preset=ObjectivePreset.MAXDIFFUSION), sigma=torch.tensor(1.0), shape=SHAPE)
    assert math.isfinite(float(alone)), "a sample's weight does not hang on its neighbours"


@pytest.mark.parametrize(("preset", "factor"), [(ObjectivePreset.MUG_V, 0.3), (ObjectivePreset.DFM_PRETRAIN, 1.0)])
def test_images_weigh_what_the_preset_says(preset: ObjectivePreset, factor: float) -> None:
    objective, sigma = Objective(preset=preset), torch.tensor(0.5)
    video = flow.weight_of(objective, sigma=sigma, shape=(16, 2, 24, 40))
    image = flow.weight_of(objective, sigma=sigma, shape=(16, 1, 24, 40))
    assert float(image) == pytest.approx(factor * float(video))


@pytest.mark.parametrize("preset", list(ObjectivePreset))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_loss_of_a_sample(preset: ObjectivePreset, sign: float) -> None:
    """Mean of (prediction - sign (noise - data))^2 times the weight, for data 0.5, noise 2 and a prediction of 0.25."""
    for sigma in SIGMAS:
        sample = Example(
            key="clip",
            latents=torch.full(SHAPE, 0.5),
            noise=torch.full(SHAPE, 2.0),
            sigma=torch.tensor(sigma),
            text=torch.zeros(1, 1),
        )
        wanted = flow.target(sample, sign=sign, patch=(1, 2, 2))
        weights = flow.token_weights(Objective(preset=preset), sample, patch=(1, 2, 2))
        loss = flow.squared_error(torch.full_like(wanted, 0.25), wanted, weights)
        assert float(loss) == pytest.approx((0.25 - sign * 1.5) ** 2 * WEIGHTS[preset](sigma), rel=1e-5, abs=1e-9)
        assert flow.noisy(sample).flatten()[0].item() == pytest.approx(0.5 + 1.5 * sigma)
