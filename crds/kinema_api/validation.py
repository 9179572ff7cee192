# SPDX-License-Identifier: Apache-2.0
"""How a run is judged while it goes on: a loss on clips that it never sees, and videos of the same prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kinema_api.base import Model, Text


class TrainingSamples(Model):
    """Videos that the model generates during training, always of the same prompts and seeds."""

    every_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps between two rounds, the last step's included; 0 generates none."""
    prompts: list[Text] = Field(default_factory=list, max_length=16)
    """What to generate; the captions of the first held-out clips, or else of the first clips, when left out."""
    count: int = Field(default=2, ge=1, le=16)
    """Captions that are taken when no prompts are named."""
    seeds: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(default_factory=lambda: [0], max_length=16)
    """One video for each prompt and seed."""
    steps: int = Field(default=30, ge=1, le=1000)
    """Denoising steps."""
    guidance: float = Field(default=5.0, ge=1, le=100)
    """Scale of classifier-free guidance, away from the empty caption; 1 is none."""
    shift: float = Field(default=3.0, ge=0.01, le=100)
    """Flow shift of the sampler."""


class Validation(Model):
    """A loss on held-out clips, which are never trained on.

    They are chosen by their keys alone, so that a clip stays what it is whatever else the dataset gains.
    """

    every_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps between two validations, the last step's included; 0 validates never, and then holds nothing out."""
    share: float = Field(default=0.02, gt=0, le=0.5)
    """Share of the clips that is held out, at least one clip."""
    clips: int | None = Field(default=None, ge=1, le=100_000)
    """Hold out exactly so many clips in place of a share."""
    timesteps: int = Field(default=8, ge=1, le=64)
    """Noise levels at which every held-out clip is tried: sigma = (i + 0.5) / timesteps."""
    samples: TrainingSamples = Field(default_factory=TrainingSamples)
    """Videos that the model generates during training."""
