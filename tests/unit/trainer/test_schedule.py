# SPDX-License-Identifier: Apache-2.0
"""The learning rate."""

from __future__ import annotations

import pytest

from kinema_api.settings import Schedule, ScheduleKind
from kinema_trainer.schedule import learning_rate


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [learning_rate(schedule, peak=2.0, step=step, steps=steps) for step in range(1, steps + 1)]


def test_cosine_rises_to_the_peak_and_falls_to_its_share() -> None:
    found = rates(Schedule(warmup_steps=4, final_ratio=0.1), 24)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[13] == pytest.approx(2.0 * 0.55)
    assert found[-1] == pytest.approx(0.2)
    assert found[3:] == sorted(found[3:], reverse=True)


def test_constant_stays_at_the_peak() -> None:
    assert rates(Schedule(kind=ScheduleKind.CONSTANT, warmup_steps=0), 3) == [2.0, 2.0, 2.0]


def test_a_run_shorter_than_its_warm_up_ends_in_it() -> None:
    assert rates(Schedule(warmup_steps=10), 3)[-1] == pytest.approx(0.6)
