# SPDX-License-Identifier: Apache-2.0
"""Whether an attempt moves: what is pushed, what is logged, and how long nothing may be."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from kinema_api.names import Stage
from kinema_api.settings import TrainSettings
from kinema_api.status import Attempt, AttemptState, ConditionStatus, Progress
from kinema_operator.stall import Movement, limit_of, moved_at, movement, number, progress_of
from kinema_operator.status import timestamp

from tests.unit.decide.story import START

pytestmark = pytest.mark.unit

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
NOT_RUNNING = Movement(UNKNOWN, "NotRunning", "not all pods of the attempt run")
NO_DATA = Movement(UNKNOWN, "NoProgressData", "the stage has not said how far it is")
NO_LOG = Movement(UNKNOWN, "NoLogData", "pushed progress is old, and the pods' log cannot be read", 60)
STALLED = Movement(FALSE, "Stalled", "neither pushed progress nor the pods' log has moved for 120 s")


def pushes(left: float) -> Movement:
    return Movement(TRUE, "ProgressPushed", "the stage says how far it is", left)


def logs(left: float) -> Movement:
    return Movement(TRUE, "LogMoves", "pushed progress is old, but the pods' log moves", left)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def attempt(ran: float | None = 0, state: AttemptState = AttemptState.RUNNING) -> Attempt:
    since = None if ran is None else timestamp(after(ran))
    return Attempt(number=2, child="c", state=state, started_at=timestamp(START), running_at=since)


def progress(at: float | None = None, **more: Any) -> Progress:
    told = {"stage": Stage.TRAIN, "attempt": 2, "updated_at": "" if at is None else timestamp(after(at)), **more}
    return Progress(**told)


MOVES: dict[str, tuple[dict[str, Any], Movement]] = {
    "not all pods run": ({"running": False, "progress": progress(0)}, NOT_RUNNING),
    "nothing was pushed": ({}, NO_DATA),
    "not known since when it runs": ({"attempt": attempt(None), "progress": progress(0)}, NO_DATA),
    "it has ended": ({"attempt": attempt(state=AttemptState.FAILED), "progress": progress(0)}, NO_DATA),
    "pushed lately": ({"progress": progress(900), "now": after(1000)}, pushes(20)),
    "pushed just lately enough": ({"progress": progress(881), "now": after(1000)}, pushes(1)),
    "pushed too long ago, log unknown": ({"progress": progress(880), "now": after(1000)}, NO_LOG),
    "ran after it pushed": ({"attempt": attempt(950), "progress": progress(0), "now": after(1000)}, pushes(70)),
    "the log moves": ({"progress": progress(0), "last_log": after(900), "now": after(1000)}, logs(20)),
    "the log moves just enough": ({"progress": progress(0), "last_log": after(881), "now": after(1000)}, logs(1)),
    "nothing moves": ({"progress": progress(0), "last_log": after(880), "now": after(1000)}, STALLED),
}


@pytest.mark.parametrize(("seen", "moves"), MOVES.values(), ids=MOVES)
def test_movement_follows_from_what_is_seen(seen: dict[str, Any], moves: Movement) -> None:
    known = {"attempt": attempt(), "running": True, "progress": None, "last_log": None, "limit": 120.0, "now": START}
    found = movement(**{**known, **seen})
    assert found == moves
    assert found.stalled == (moves is STALLED)


def test_the_limit_is_twice_what_is_set_or_measured_or_usual() -> None:
    measured = progress(metrics={"stall_limit_seconds": "45.5"})
    assert limit_of(TrainSettings(stall_seconds=60), measured) == 120
    assert limit_of(TrainSettings(), measured) == 91
    assert limit_of(TrainSettings(), None) == limit_of(TrainSettings(), progress()) == 3600


@pytest.mark.parametrize(
    ("said", "read"),
    [("1.5", 1.5), ("1e-9", 1e-9), ("0", None), ("-1", None), ("inf", None), ("nan", None), ("no", None)],
)
def test_a_metric_is_a_positive_number_or_nothing(said: str, read: float | None) -> None:
    assert number(progress(metrics={"m": said}), "m") == read
    assert number(progress(metrics={"m": said}), "other") is None
    assert number(None, "m") is None


def test_progress_is_that_of_the_very_attempt() -> None:
    own = progress(5)
    assert progress_of(attempt(), Stage.TRAIN, own) is own
    assert progress_of(attempt(), Stage.EXPORT, own) is None
    assert progress_of(attempt(), Stage.TRAIN, progress(5, attempt=1)) is None
    assert progress_of(attempt(), Stage.TRAIN, progress()) is None
    assert progress_of(attempt(), Stage.TRAIN, None) is None


def test_an_attempt_moved_when_it_pushed_but_not_before_it_ran() -> None:
    assert moved_at(attempt(10), progress(70)) == after(70)
    assert moved_at(attempt(90), progress(70)) == after(90)
    assert moved_at(attempt(10), None) is None
    assert moved_at(attempt(None), progress(70)) is None
    assert moved_at(attempt(10, AttemptState.SUCCEEDED), progress(70)) is None
