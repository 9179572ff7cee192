# SPDX-License-Identifier: Apache-2.0
"""Rectified flow: x_t = (1 - sigma) data + sigma noise, one sigma a sample; the model predicts noise - data or back.

All randomness of a sample is a function of the run's seed and the sample's position in the run, so that a draw depends
neither on the number of processes nor on restarts, and no random state has to be saved.

What a step sums is a weight for each token times the squared error of its features. The weights of a sample's tokens
hold the sample's whole share, so that any split of the tokens over processes adds up to the same loss.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kinema_api.objective import Objective, Recipe, ShiftKind, TimestepSampling, Weighting
from kinema_trainer.batch import Example
from kinema_trainer.objectives.masks import clean_frames

TIMESTEPS = 1000
"""The transformer's sinusoid is fed 1000 sigma, in float32: bfloat16 would round it to multiples of 4 near the top."""
SMALLEST_U = 1e-5
REFERENCE_SIDE = 512
"""Pixels: the side of the picture whose shift is 1 (arXiv 2403.03206, section 5.3.2)."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What one sample is trained on, beside its latents."""

    sigma: Tensor
    """Scalar in (0, 1], float32."""
    noise: Tensor
    """[channels, frames, height, width], float32."""
    drop_caption: bool
    clean: Tensor | None = None
    """[frames], bool: latent frames that are given as they are; None: no frame is."""


def generator(*, seed: int, position: int) -> torch.Generator:
    """The random stream of the sample that is `position`-th in the run, counted over all processes and epochs."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8, person=b"kinema-draw").digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(objective: Objective, *, shape: Sequence[int], stream: torch.Generator, spatial: int = 8) -> Draw:
    """Draw noise level, noise, caption dropout and clean frames; the same numbers are consumed whatever the settings.

    Args:
        objective: the distributions.
        shape: [channels, frames, height, width] of the latents.
        stream: the sample's own.
        spatial: pixels of a latent pixel, each way.
    """
    recipe = objective.recipe
    coin, uniform, dropout = torch.rand(3, generator=stream, dtype=torch.float64).tolist()
    normal = torch.randn((), generator=stream, dtype=torch.float64)
    noise = torch.randn(tuple(shape), generator=stream, dtype=torch.float32)
    masks = torch.rand(3 + shape[1], generator=stream, dtype=torch.float64)
    kind = TimestepSampling.UNIFORM if coin < recipe.uniform_mix else recipe.timesteps
    u = level(recipe, kind=kind, uniform=uniform, normal=float(normal))
    sigma = sigma_of(recipe, u, shift=shift_of(recipe, shape=shape, spatial=spatial))
    return Draw(
        sigma=sigma.float(),
        noise=noise,
        drop_caption=dropout < objective.caption_dropout,
        clean=clean_frames(objective.masks, frames=shape[1], numbers=masks),
    )


def level(recipe: Recipe, *, kind: TimestepSampling, uniform: float, normal: float) -> Tensor:
    """The u in [1e-5, 1] of a number that is uniform on [0, 1) and one that is standard normal; float64."""
    match kind:
        case TimestepSampling.UNIFORM:
            u = torch.tensor(uniform, dtype=torch.float64)
        case TimestepSampling.LOGIT_NORMAL:
            u = torch.sigmoid(torch.tensor(recipe.logit_mean + recipe.logit_std * normal, dtype=torch.float64))
        case TimestepSampling.MODE:
            bend = math.cos(math.pi * uniform / 2) ** 2 - 1 + uniform
            u = torch.tensor(1 - uniform - recipe.mode_scale * bend, dtype=torch.float64)
    return u.clamp(SMALLEST_U, 1.0)


def shift_of(recipe: Recipe, *, shape: Sequence[int], spatial: int) -> float:
    """The shift of a clip whose latents are [channels, frames, height, width]."""
    if recipe.shift_kind is ShiftKind.CONSTANT:
        return recipe.shift
    _, frames, height, width = shape
    return recipe.shift * spatial * math.sqrt(height * width * frames) / REFERENCE_SIDE


def sigma_of(recipe: Recipe, u: Tensor, *, shift: float) -> Tensor:
    """The noise level of u."""
    t = shifted(u, shift=shift)
    return recipe.sigma_min + (1 - recipe.sigma_min) * t


def shifted(u: Tensor, *, shift: float) -> Tensor:
    """Shift a level: shift u / (1 + (shift - 1) u), clamped to [0, 1]."""
    return (shift * u / (1 + (shift - 1) * u)).clamp(0, 1)


def weight_of(objective: Objective, *, sigma: Tensor, shape: Sequence[int], spatial: int = 8) -> Tensor:
    """What the loss of a sample at a noise level is multiplied by; float32, of sigma's shape.

    Args:
        objective: the weighting.
        sigma: of one sample or several of the same shape.
        shape: [channels, frames, height, width] of the latents.
        spatial: pixels of a latent pixel, each way.
    """
    recipe = objective.recipe
    shift = shift_of(recipe, shape=shape, spatial=spatial)
    match recipe.weighting:
        case Weighting.NONE:
            weight = torch.ones_like(sigma, dtype=torch.float32)
        case Weighting.SHIFT:
            weight = 1 + shift * sigma.float()
        case Weighting.BELL:
            weight = _looked_up(sigma, *bell(shift, recipe.sigma_min))
    return weight * recipe.image_weight if shape[1] == 1 else weight


@lru_cache(maxsize=256)
def bell(shift: float, sigma_min: float) -> tuple[Tensor, Tensor]:
    """The weights of 1000 fixed noise levels: exp(-2 (sigma - 1/2)^2) less its smallest value, 1 on average.

    Returns:
        The levels, ascending, and their weights; both [1000], float64.
    """
    sigmas = shifted(torch.linspace(sigma_min, 1.0, TIMESTEPS, dtype=torch.float64), shift=shift)
    bump = torch.exp(-2 * (sigmas - 0.5).square())
    bump -= bump.min()
    return sigmas, bump * (TIMESTEPS / bump.sum())


def _looked_up(sigma: Tensor, levels: Tensor, weights: Tensor) -> Tensor:
    """The weight of the nearest level."""
    points = sigma.detach().to("cpu", torch.float64)
    above = torch.searchsorted(levels, points).clamp(1, len(levels) - 1)
    nearest = torch.where(points - levels[above - 1] <= levels[above] - points, above - 1, above)
    return weights[nearest].float().to(sigma.device)


def frame_sigmas(example: Example) -> Tensor:
    """The noise level of each latent frame, [frames]: 0 where the frame is given as it is."""
    frames = example.sigma.expand(example.latents.shape[1])
    clean = example.condition.clean
    return frames if clean is None else frames.masked_fill(clean, 0.0)


def noisy(example: Example) -> Tensor:
    """x_t of a sample, [channels, frames, height, width]: its clean frames are the latents, bit for bit."""
    at = frame_sigmas(example).view(1, -1, 1, 1)
    return (1 - at) * example.latents + at * example.noise


def target(example: Example, *, sign: float, patch: tuple[int, int, int]) -> Tensor:
    """What the model should predict, as tokens.

    Args:
        example: the sample.
        sign: 1 for noise - data, -1 for its opposite.
        patch: latent frames, rows and columns of a token.

    Returns:
        [tokens, features], see `tokens`.
    """
    return tokens(sign * (example.noise - example.latents).float(), patch=patch)


def tokens(latents: Tensor, *, patch: tuple[int, int, int]) -> Tensor:
    """Latents [channels, frames, height, width] as [tokens, features].

    Tokens run by frame, row and column; a token's features by frame, row and column of the patch, then channel, as
    Wan's head writes them.
    """
    channels, frames, height, width = latents.shape
    t, h, w = patch
    parts = latents.reshape(channels, frames // t, t, height // h, h, width // w, w)
    return parts.permute(1, 3, 5, 2, 4, 6, 0).reshape(-1, t * h * w * channels)


def latents_of(rows: Tensor, *, shape: Sequence[int], patch: tuple[int, int, int]) -> Tensor:
    """The latents [channels, frames, height, width] that `tokens` took apart."""
    channels, frames, height, width = shape
    t, h, w = patch
    parts = rows.reshape(frames // t, height // h, width // w, t, h, w, channels)
    return parts.permute(6, 0, 3, 1, 4, 2, 5).reshape(channels, frames, height, width)


def token_weights(objective: Objective, example: Example, *, patch: tuple[int, int, int], spatial: int = 8) -> Tensor:
    """What each token's squared error is multiplied by in the sum that is the sample's loss; [tokens], float32.

    A sample's loss is the mean over the elements of its noisy frames, times the weight of its noise level, times its
    own weight. Tokens of clean frames have none.
    """
    channels, _, height, width = example.latents.shape
    weight = weight_of(objective, sigma=example.sigma, shape=example.latents.shape, spatial=spatial)
    each = frame_shares(example, patch=patch) * weight * example.weight
    return each.repeat_interleave((height // patch[1]) * (width // patch[2])) / (channels * height * width)


def frame_shares(example: Example, *, patch: tuple[int, int, int]) -> Tensor:
    """The share of each row of tokens of one time in the mean over the noisy frames; [frames / patch], float32.

    Raises:
        ValueError: a token would hold a clean frame beside a noisy one.
    """
    frames = example.latents.shape[1]
    keep = torch.ones(frames, dtype=torch.float32, device=example.latents.device)
    if example.condition.clean is not None:
        keep = (~example.condition.clean).float()
    by_token = keep.view(-1, patch[0])
    # Asked only where it can be: the answer has to come from the device.
    if patch[0] > 1 and not torch.equal(by_token.amin(dim=1), by_token.amax(dim=1)):
        raise ValueError(f"{example.key}: a token of {patch[0]} latent frames is partly clean")
    return by_token[:, 0] / keep.sum().clamp_min(1)


def squared_error(prediction: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of squared errors over any rows of tokens, in float32; a scalar.

    Args:
        prediction: [tokens, features].
        wanted: the same rows of `target`.
        weights: the same rows of `token_weights`.
    """
    return ((prediction.float() - wanted).square().sum(dim=-1) * weights).sum()
