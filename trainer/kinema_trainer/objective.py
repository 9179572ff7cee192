# SPDX-License-Identifier: Apache-2.0
"""Rectified flow: x_t = (1 - sigma) x_0 + sigma noise, target noise - x_0, one sigma a sample.

The presets follow NVIDIA-NeMo/DFM, dfm/src/automodel/flow_matching, which draws one sigma a batch; here it is
one a sample.

All randomness of a sample is a function of the run's seed and the sample's position in the run, so that a draw depends
neither on the number of processes nor on restarts, and no random state has to be saved.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema_api.settings import Objective, TimestepSampling

TIMESTEPS = 1000
"""The transformer's sinusoid is fed 1000 sigma, in float32: bfloat16 would round it to multiples of 4 near the top."""
SMALLEST_U = 1e-5


@dataclass(frozen=True, slots=True)
class Draw:
    """What one sample is trained on, beside its latents."""

    sigma: Tensor
    """Scalar in (0, 1], float32."""
    noise: Tensor
    """[channels, frames, height, width], float32."""
    drop_caption: bool


def generator(*, seed: int, position: int) -> torch.Generator:
    """The random stream of the sample that is `position`-th in the run, counted over all processes and epochs."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8, person=b"kinema-draw").digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(objective: Objective, *, shape: torch.Size, stream: torch.Generator) -> Draw:
    """Draw noise level, noise and caption dropout; the same numbers are consumed whatever the settings."""
    coin, uniform, dropout = torch.rand(3, generator=stream, dtype=torch.float64).tolist()
    normal = torch.randn((), generator=stream, dtype=torch.float64)
    noise = torch.randn(shape, generator=stream, dtype=torch.float32)
    if objective.timesteps is TimestepSampling.UNIFORM or coin < objective.uniform_mix:
        u = torch.tensor(uniform, dtype=torch.float64)
    else:
        u = torch.sigmoid(objective.logit_mean + objective.logit_std * normal)
    sigma = shifted(u.clamp(SMALLEST_U, 1.0), shift=objective.shift).float()
    return Draw(sigma=sigma, noise=noise, drop_caption=dropout < objective.caption_dropout)


def shifted(u: Tensor, *, shift: float) -> Tensor:
    """Sigma = shift u / (1 + (shift - 1) u), clamped to [0, 1]."""
    return (shift * u / (1 + (shift - 1) * u)).clamp(0, 1)


def interpolate(*, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t of latents and noise, both [batch, channels, frames, height, width], at sigma [batch]."""
    level = sigma.view(-1, 1, 1, 1, 1)
    return (1 - level) * latents + level * noise


def loss(objective: Objective, *, prediction: Tensor, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Each sample's mean squared error to noise - latents, in float32 and weighed; [batch]."""
    error = (prediction.float() - (noise - latents).float()).square().flatten(1).mean(dim=1)
    return error * (1 + objective.shift * sigma) if objective.weighted else error
