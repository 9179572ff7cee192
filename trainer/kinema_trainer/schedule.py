# SPDX-License-Identifier: Apache-2.0
"""The learning rate, as a pure function of the step."""

from __future__ import annotations

import math

from kinema_api.settings import Schedule, ScheduleKind


def learning_rate(schedule: Schedule, *, peak: float, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        schedule: shape and warm-up.
        peak: the highest learning rate.
        step: counts from 1.
        steps: the last step.
    """
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.kind is ScheduleKind.CONSTANT:
        return peak
    span = max(1, steps - schedule.warmup_steps)
    done = min(1.0, (step - schedule.warmup_steps) / span)
    floor = schedule.final_ratio
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
