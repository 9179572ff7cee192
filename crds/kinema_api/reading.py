# SPDX-License-Identifier: Apache-2.0
"""What the pod that reads a job's workspace is told, and what it answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kinema_api.base import Model
from kinema_api.inputs import Storage

READER_PORT = 8081
FINAL = "final"
"""The round of the videos that the sample stage made; those made while training have their step as their name."""
SERIES = ("loss", "samples_per_second", "tokens_per_second", "learning_rate", "grad_norm", "mfu")
"""Numbers of a step whose history is shown."""
POINTS = 500


class ReaderConfig(Model):
    """What a reader is told."""

    schema_version: Literal[1] = 1
    """Raised when an older reader could misread a config."""
    workspace: Storage
    """Root of the workspace, as the process sees it."""
    run: str
    """The job's private folder, relative to the workspace."""
    token_digest: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the token that requests carry; the token itself is nowhere in the cluster."""
    port: int = READER_PORT
    """Plain HTTP. 0 takes a free one."""
    idle_seconds: int = Field(default=300, ge=1)
    """After so long without a request it ends."""


class Series(Model):
    """One number over the steps."""

    name: str
    """As the trainer names it."""
    steps: list[int]
    """Optimizer steps, rising."""
    values: list[float | None]
    """The number at each; null where it was not finite."""


class History(Model):
    """How a training went."""

    step: int | None
    """The last step; null before the first."""
    series: list[Series]
    """At most as many points each as were asked for; what stands out is kept."""


class Sample(Model):
    """A video that the model made."""

    round: str
    """`final`, or the step of the training at which it was made."""
    file: str
    """Its name."""
    prompt: str
    """What it was made from."""
    seed: int
    """Of its noise."""
    size: int
    """Bytes."""


class Samples(Model):
    """The videos that a job's model made."""

    items: list[Sample]
    """The newest round first."""
