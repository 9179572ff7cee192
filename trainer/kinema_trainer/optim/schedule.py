# SPDX-License-Identifier: Apache-2.0
"""The learning rate, as a pure function of the step: nothing of it has to be saved."""

from __future__ import annotations

import math

from kinema_api.schedule import DecayShape, Schedule, ScheduleKind


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
    floor = schedule.final_ratio
    return peak * (floor + (1 - floor) * _share(schedule, step=step, steps=steps))


def _share(schedule: Schedule, *, step: int, steps: int) -> float:
    """What is left of the way from the floor to the peak, after the warm-up."""
    match schedule.kind:
        case ScheduleKind.CONSTANT:
            return 1.0
        case ScheduleKind.COSINE:
            begin, shape = schedule.warmup_steps, DecayShape.COSINE
        case ScheduleKind.WSD:
            begin, shape = max(schedule.warmup_steps, steps - decay_steps(schedule, steps=steps)), schedule.decay
    done = min(1.0, max(0.0, (step - begin) / max(1, steps - begin)))
    match shape:
        case DecayShape.LINEAR:
            return 1 - done
        case DecayShape.COSINE:
            return 0.5 * (1 + math.cos(math.pi * done))
        case DecayShape.SQRT:
            return 1 - math.sqrt(done)


def decay_steps(schedule: Schedule, *, steps: int) -> int:
    """The length of the fall at the end of warm-up, stable, decay."""
    return schedule.decay_steps or max(1, steps // 10)
