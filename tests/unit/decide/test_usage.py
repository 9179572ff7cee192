# SPDX-License-Identifier: Apache-2.0
"""The ledger of an attempt: what its time went to, and the hours of accelerators."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.stage import JobRef
from kinema_api.status import Attempt, AttemptState, Progress, Seconds, Usage
from kinema_operator.manifests import AttemptPlan
from kinema_operator.status import timestamp
from kinema_operator.usage import accelerators, accounted, added

from tests.unit.decide.story import JOB, KEYS, PLATFORM, START

pytestmark = pytest.mark.unit


def attempt(state: AttemptState, wall: float | None = 100) -> Attempt:
    end = None if wall is None else timestamp(after(wall))
    return Attempt(number=1, child="c", state=state, started_at=timestamp(START), finished_at=end)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def pushed(**seconds: str) -> Progress:
    return Progress(stage=Stage.TRAIN, metrics={f"seconds_{name}": value for name, value in seconds.items()})


WELL, BADLY, STOPPED = AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.STOPPED
TOLD = {"starting": 10, "productive": 50, "data": 5, "checkpoint": 3, "novelty": 9}
CASES: dict[str, tuple[Attempt, float | None, dict[str, int] | None, Progress | None, Seconds]] = {
    "never ran": (attempt(BADLY), None, TOLD, None, Seconds(queued=100)),
    "has not ended": (attempt(WELL, None), 0, None, None, Seconds()),
    "ended before it began, by another clock": (attempt(WELL, -50), 0, None, None, Seconds()),
    "well, and said nothing": (attempt(WELL), 30, None, None, Seconds(queued=30, productive=70)),
    "badly, and said nothing": (attempt(BADLY), 30, {}, None, Seconds(queued=30, lost=70)),
    "stopped, and said nothing": (attempt(STOPPED), 30, {}, None, Seconds(queued=30, lost=70)),
    "ran before it was made, by another clock": (attempt(WELL), -30, None, None, Seconds(productive=100)),
    "ran after it ended, by another clock": (attempt(WELL), 130, None, None, Seconds(queued=100)),
    "said all": (
        attempt(WELL),
        20,
        TOLD,
        None,
        Seconds(queued=20, starting=22, productive=50, data=5, checkpoint=3),
    ),
    "said all, and failed": (
        attempt(BADLY),
        20,
        TOLD,
        None,
        Seconds(queued=20, starting=10, productive=50, data=5, checkpoint=3, lost=12),
    ),
    "said more than there was": (
        attempt(WELL),
        20,
        {"starting": 30, "data": 20, "checkpoint": 20, "productive": 90},
        None,
        Seconds(queued=20, starting=30, data=20, checkpoint=20, productive=10),
    ),
    "said less than nothing": (attempt(WELL), 0, {"starting": -5, "data": 4}, None, Seconds(data=4, starting=96)),
    "its last word counts more than its progress": (
        attempt(BADLY),
        0,
        {"productive": 1},
        pushed(productive="9", saved="9"),
        Seconds(productive=1, lost=99),
    ),
    "well, by its progress": (
        attempt(WELL),
        0,
        None,
        pushed(productive="60.9", starting="7", saved="3"),
        Seconds(productive=60, starting=40),
    ),
    "badly, by its progress": (
        attempt(BADLY),
        0,
        None,
        pushed(productive="60", saved="40.5", data="2", checkpoint="1", starting="3"),
        Seconds(productive=40, data=2, checkpoint=1, starting=3, lost=54),
    ),
    "badly, with nothing saved": (attempt(BADLY), 0, None, pushed(productive="60"), Seconds(lost=100)),
    "badly, with more saved than done": (
        attempt(STOPPED),
        0,
        None,
        pushed(productive="6", saved="60"),
        Seconds(productive=6, lost=94),
    ),
    "progress that cannot be read": (attempt(WELL), 0, None, pushed(productive="no"), Seconds(productive=100)),
}


@pytest.mark.parametrize(("ended", "ran", "told", "progress", "seconds"), CASES.values(), ids=CASES)
def test_time_is_accounted_for(
    ended: Attempt, ran: float | None, told: dict[str, int] | None, progress: Progress | None, seconds: Seconds
) -> None:
    ran_from = None if ran is None else after(ran)
    assert accounted(ended, ran_from=ran_from, told=told, progress=progress) == seconds


def test_hours_of_accelerators_are_added_up() -> None:
    once = added(Usage(), Seconds(queued=3600, productive=1800, data=1, lost=5), 4)
    assert once.seconds == Seconds(queued=3600, productive=1800, data=1, lost=5)
    assert once.accelerator_hours == {"productive": "2.000", "data": "0.001", "lost": "0.006"}
    twice = added(once, Seconds(productive=900, starting=18), 2)
    assert twice.seconds == Seconds(queued=3600, productive=2700, data=1, lost=5, starting=18)
    assert twice.accelerator_hours == {
        "productive": "2.500", "data": "0.001", "lost": "0.006", "starting": "0.010"
    }  # fmt: skip
    assert added(once, Seconds(productive=900), 0).accelerator_hours == once.accelerator_hours


SPEC = JobSpec.model_validate(
    JOB["spec"] | {"defaults": {"pool": "p", "nodes": 3, "devicesPerNode": 4}, "stages": {"features": {"workers": 5}}}
)
HELD = {Stage.FEATURES: 5, Stage.TRAIN: 12, Stage.SAMPLE: 1}


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("accelerator", list(Accelerator))
def test_accelerators_are_held_by_those_stages_that_need_them(stage: Stage, accelerator: Accelerator) -> None:
    pool = PoolSpec(accelerator=accelerator, devices_per_node=8, nodes=4)
    images = {"stage": "s", f"wan2.1/{accelerator}": "w"}
    plan = AttemptPlan(
        job=JobRef(namespace="lab", name="wan", uid="3f2a9c1e-0000-4000-8000-000000000001"),
        spec=SPEC,
        resolved=freeze(spec=SPEC, pools={"p": pool}, images=images),
        keys=Keys.stored(KEYS),
        stage=stage,
        number=1,
        platform=replace(PLATFORM, images=images),
    )
    assert accelerators(plan) == (0 if accelerator is Accelerator.CPU else HELD.get(stage, 0))
