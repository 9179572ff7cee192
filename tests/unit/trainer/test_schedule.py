# SPDX-License-Identifier: Apache-2.0
"""The learning rate."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema_api.schedule import DecayShape, Schedule, ScheduleKind
from kinema_trainer.optim.schedule import learning_rate


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


def closed(shape: DecayShape, done: float) -> float:
    """What is left of the fall after a share of it."""
    return {
        DecayShape.LINEAR: 1 - done,
        DecayShape.COSINE: (1 + math.cos(math.pi * done)) / 2,
        DecayShape.SQRT: 1 - done**0.5,
    }[shape]


@pytest.mark.parametrize("shape", list(DecayShape))
def test_wsd_rises_stays_and_falls_in_its_last_steps(shape: DecayShape) -> None:
    schedule = Schedule(kind=ScheduleKind.WSD, warmup_steps=5, decay_steps=10, decay=shape, final_ratio=0.25)
    found = rates(schedule, 40)
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[4:30] == [2.0] * 26
    assert found[30:] == pytest.approx([2 * (0.25 + 0.75 * closed(shape, n / 10)) for n in range(1, 11)])
    assert found[-1] == pytest.approx(0.5)


def test_a_longer_wsd_run_is_the_shorter_one_until_that_decays() -> None:
    schedule = Schedule(kind=ScheduleKind.WSD, warmup_steps=5, decay_steps=10)
    assert rates(schedule, 100)[:30] == rates(schedule, 40)[:30]


def test_wsd_decays_for_a_tenth_of_the_run_when_nobody_says_how_long() -> None:
    found = rates(Schedule(kind=ScheduleKind.WSD, warmup_steps=0, final_ratio=0), 50)
    assert found[:45] == [2.0] * 45
    assert found[45:] == pytest.approx([1.6, 1.2, 0.8, 0.4, 0.0])


@given(
    kind=st.sampled_from(list(ScheduleKind)),
    decay=st.sampled_from(list(DecayShape)),
    steps=st.integers(2, 400),
    warmup=st.integers(0, 50),
    length=st.none() | st.integers(1, 500),
    ratio=st.floats(0, 1),
)
def test_every_schedule_rises_then_never_rises_again_and_ends_at_its_share(
    kind: ScheduleKind, decay: DecayShape, steps: int, warmup: int, length: int | None, ratio: float
) -> None:
    warmup = min(warmup, steps - 1)
    found = rates(Schedule(kind=kind, decay=decay, warmup_steps=warmup, decay_steps=length, final_ratio=ratio), steps)
    rise, rest = found[:warmup], found[warmup:]
    assert rise == sorted(rise)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(rest))
    assert all(0 <= rate <= 2 for rate in found)
    assert found[-1] == pytest.approx(2.0 if kind is ScheduleKind.CONSTANT else 2 * ratio)
