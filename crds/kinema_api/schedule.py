# SPDX-License-Identifier: Apache-2.0
"""The learning rate over steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kinema_api.base import Model, Word

Fraction = Annotated[float, Field(ge=0, le=1)]


class ScheduleKind(Word):
    """Shape of the learning rate after the warm-up."""

    COSINE = "cosine"
    CONSTANT = "constant"
    WSD = "wsd"


class DecayShape(Word):
    """How the learning rate falls in the last steps of warm-up, stable, decay."""

    LINEAR = "linear"
    COSINE = "cosine"
    SQRT = "sqrt"


class Schedule(Model):
    """The learning rate over steps."""

    kind: ScheduleKind = ScheduleKind.COSINE
    """Shape after the warm-up: cosine falls over the whole run, constant never, wsd (warm-up, stable, decay) only in
    the last decaySteps, so that a run can be made longer before they begin."""
    warmup_steps: int = Field(default=100, ge=0, le=10_000_000)
    """Steps of linear rise from 0. What you leave out is at most a tenth of the run."""
    decay_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Steps of the fall at the end of the run (wsd only); a tenth of the run when left out."""
    decay: DecayShape = DecayShape.LINEAR
    """Shape of that fall (wsd only): linear, half a cosine, or 1 - sqrt of the share that is done."""
    final_ratio: Fraction = 0.1
    """Learning rate at the last step as a share of the peak (cosine and wsd)."""
