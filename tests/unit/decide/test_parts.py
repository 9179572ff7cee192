# SPDX-License-Identifier: Apache-2.0
"""The small parts of a decision by themselves: times, sentences, demands, conditions and the draft."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from kinema_api.exits import FailureClass
from kinema_api.job import JobSpec, Policy
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.plan import freeze
from kinema_api.status import Attempt, AttemptState, Condition, ConditionStatus, JobStatus, Phase, Progress
from kinema_operator.conditions import Truth, with_conditions
from kinema_operator.denied import hindered
from kinema_operator.diagnosis import joined
from kinema_operator.draft import Draft, blames_node, keys_of
from kinema_operator.observed import Decision, Deletion, Event, EventType, Observed
from kinema_operator.status import (
    generation_of,
    parse_time,
    read_progress,
    read_status,
    shorten,
    stored,
    timestamp,
    write_progress,
    write_status,
)
from kinema_operator.stop import CANCELLED, SUSPENDED, Stop, deadline, demanded, suspended_seconds

from tests.unit.decide.story import KEYS, PLATFORM, POOLS, START, born, job

pytestmark = pytest.mark.unit


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_times_are_written_in_utc_and_read_back() -> None:
    elsewhere = datetime(2026, 1, 1, 5, 30, 1, 999_999, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert timestamp(elsewhere) == "2026-01-01T00:00:01Z"
    assert parse_time("2026-01-01T00:00:01Z") == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)


def test_a_message_is_one_short_line() -> None:
    assert shorten("a\n b\t c ") == "a b c"
    assert shorten("x" * 1024) == "x" * 1024
    assert shorten("x" * 1025) == "x" * 1021 + "..."
    assert shorten("abcdefgh", 6) == "abc..."
    assert shorten("abcdef", 6) == "abcdef"


def test_a_fix_is_said_once() -> None:
    assert joined("it is full. ;", "free space") == "it is full; free space"
    assert joined("it is full; free space.", "free space") == "it is full; free space"
    assert joined("it is full.", "") == "it is full"
    assert joined("it is X.", "free space") == "it is X; free space"


def test_the_status_is_read_and_written_without_progress() -> None:
    progress = {"stage": "train", "percent": "4%", "updatedAt": "2026-01-01T00:00:00Z", "novelty": 1}
    made = {**job(), "status": {"phase": "Running", "restarts": 3, "novelty": 1, "progress": progress}}
    status = read_status(made)
    assert (status.phase, status.restarts, status.progress) == (Phase.RUNNING, 3, None)
    assert read_progress(made) == Progress(stage=Stage.TRAIN, percent="4%", updated_at="2026-01-01T00:00:00Z")
    assert write_status(status.model_copy(update={"progress": read_progress(made)})) == write_status(status)
    assert stored(made) == write_status(status) != write_status(JobStatus())
    assert write_status(status)["restarts"] == 3


@pytest.mark.parametrize("status", [None, {}, {"progress": {"percent": "4%"}}])
def test_without_progress_there_is_none(status: Any) -> None:
    assert read_progress({**job(), "status": status}) is None
    assert read_progress(job()) is None
    assert read_status({**job(), "status": status}) == read_status(job()) == JobStatus()


def test_a_job_without_a_generation_is_at_none() -> None:
    made = job()
    assert generation_of(made) == 1
    del made["metadata"]["generation"]
    assert generation_of(made) == 0


def test_progress_that_begins_has_no_time() -> None:
    told = Progress(stage=Stage.TRAIN, attempt=2, loss="0.1", updated_at="2026-01-01T00:00:00Z")
    begun = {"stage": "train", "attempt": 2, "percent": "", "percentage": 0, "loss": "0.1", "metrics": {}}
    assert write_progress(told) == begun


STARTED = JobStatus(started_at=timestamp(START))
PAUSED = JobStatus(started_at=timestamp(START), suspended_at=timestamp(after(10)), suspended_seconds=7)
LATE = Stop(
    "DeadlineExceeded",
    "the job took longer than spec.policy.deadlineSeconds (100); raise it and set spec.policy.retry to go on from the"
    " last complete checkpoint",
    Phase.FAILED,
    AttemptState.FAILED,
    FailureClass.TIMEOUT,
)
DEMANDS: dict[str, tuple[dict[str, Any], JobStatus, float, Stop | None]] = {
    "nothing": ({}, STARTED, 999, None),
    "cancel comes first": ({"cancel": True, "suspend": True, "deadlineSeconds": 1}, STARTED, 999, CANCELLED),
    "suspend": ({"suspend": True}, STARTED, 999, SUSPENDED),
    "suspend within the deadline": ({"suspend": True, "deadlineSeconds": 100}, STARTED, 99, SUSPENDED),
    "the deadline comes before a pause": ({"suspend": True, "deadlineSeconds": 100}, STARTED, 100, LATE),
    "within the deadline": ({"deadlineSeconds": 100}, STARTED, 99, None),
    "at the deadline": ({"deadlineSeconds": 100}, STARTED, 100, LATE),
    "not started": ({"deadlineSeconds": 100}, JobStatus(), 999, None),
    "suspended time does not count": ({"deadlineSeconds": 100}, PAUSED, 999, None),
}


@pytest.mark.parametrize(("policy", "status", "seconds", "stop"), DEMANDS.values(), ids=DEMANDS)
def test_what_the_policy_demands(policy: dict[str, Any], status: JobStatus, seconds: float, stop: Stop | None) -> None:
    assert demanded(Policy.model_validate(policy), status, after(seconds)) == stop


def test_only_an_end_is_final() -> None:
    assert (CANCELLED.final, LATE.final, SUSPENDED.final) == (True, True, False)


def test_the_deadline_moves_with_the_pauses() -> None:
    policy = Policy.model_validate({"deadlineSeconds": 100})
    assert deadline(policy, STARTED, after(5)) == after(100)
    assert deadline(policy, PAUSED, after(15)) == after(112)
    assert deadline(Policy(), PAUSED, after(15)) is None
    assert suspended_seconds(STARTED, after(15)) == 0
    assert suspended_seconds(PAUSED, after(15.9)) == 12
    assert suspended_seconds(PAUSED, after(5)) == 7, "a clock that went back takes nothing off"


TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
SAYS = ("R", "why")
PHASES: dict[Phase, dict[str, tuple[ConditionStatus, str, str]]] = {
    phase: {
        "Accepted": (TRUE, "Accepted", ""),
        "Running": (TRUE if phase is Phase.RUNNING else FALSE, *SAYS),
        "Suspended": (TRUE, *SAYS) if phase is Phase.SUSPENDED else (FALSE, "NotSuspended", ""),
        "Progressing": (UNKNOWN, "NotRunning", ""),
        "Succeeded": (TRUE if phase is Phase.SUCCEEDED else FALSE, *SAYS),
        "Failed": (TRUE if phase in (Phase.FAILED, Phase.CANCELLED) else FALSE, *SAYS),
    }
    for phase in Phase
}


@pytest.mark.parametrize(("phase", "says"), PHASES.items(), ids=PHASES)
def test_conditions_follow_from_the_phase(phase: Phase, says: dict[str, tuple[ConditionStatus, str, str]]) -> None:
    status = with_conditions(JobStatus(phase=phase, observed_generation=4), reason="R", message="why", now=START)
    assert status.conditions == [
        Condition(
            type=kind,
            status=truth,
            reason=reason,
            message=message,
            last_transition_time=timestamp(START),
            observed_generation=4,
        )
        for kind, (truth, reason, message) in says.items()
    ]


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    once = with_conditions(JobStatus(phase=Phase.RUNNING), reason="R", message="why", now=START)
    moves = Truth(TRUE, "ProgressPushed", "p" * 2000)
    again = with_conditions(
        once.model_copy(update={"phase": Phase.PENDING}),
        reason="S",
        message="because",
        now=after(9),
        accepted=False,
        progressing=moves,
    )
    changed = {
        condition.type for condition in again.conditions if condition.last_transition_time == timestamp(after(9))
    }
    assert changed == {"Accepted", "Running", "Progressing"}
    accepted, progressing = again.condition("Accepted"), again.condition("Progressing")
    assert accepted is not None and (accepted.status, accepted.reason, accepted.message) == (FALSE, "S", "because")
    assert progressing is not None and (progressing.status, progressing.reason) == (TRUE, "ProgressPushed")
    assert progressing.message == "p" * 1021 + "..."


def test_a_job_that_cannot_be_looked_at_says_which_right_is_lacking() -> None:
    why = 'jobs.batch is forbidden: "kinema" cannot list resource "jobs"'
    message = f"waits: the operator lacks a right: {why}"
    diagnosis = f"{message}; let the administrator give the operator the right that it names: the chart has it"
    event = Event(EventType.WARNING, "Forbidden", diagnosis)
    made = {**job(), "status": JobStatus(phase=Phase.RUNNING, restarts=1).wire()}
    decision = hindered(made, why, START)
    assert decision == Decision(status=decision.status, events=(event,))
    status = read_status({"status": decision.status})
    assert (status.phase, status.restarts, status.message, status.diagnosis) == (Phase.RUNNING, 1, message, diagnosis)
    running = status.condition("Running")
    assert running is not None
    assert (running.status, running.reason, running.message) == (TRUE, "Forbidden", message)
    assert running.last_transition_time == timestamp(START)
    assert hindered({**made, "status": decision.status}, why, after(9)) == Decision(events=(event,))
    ended = {**job(), "status": JobStatus(phase=Phase.FAILED).wire()}
    assert hindered(ended, why, START) == Decision(events=(event,))


def draft(**spec: Any) -> Draft:
    written = JobSpec.model_validate(job(**spec)["spec"])
    resolved = freeze(spec=written, pools=POOLS, images=PLATFORM.images)
    return Draft(
        job=job(**spec), spec=written, resolved=resolved, before=JobStatus(restarts=2), observed=Observed(children=()),
        platform=PLATFORM, now=START,
    )  # fmt: skip


def test_waits_between_attempts_double_up_to_a_limit() -> None:
    made = draft(policy={"restarts": {"limit": 9, "backoffSeconds": 7}})
    assert [made.backoff(failures) for failures in (0, 1, 2, 3, 6, 7)] == [7, 7, 14, 28, 224, 300]


def test_retries_of_a_stage_count_before_those_of_the_job() -> None:
    made = draft(policy={"restarts": {"limit": 9}}, stages={"train": {"retries": 0}})
    assert (made.limit(Stage.TRAIN), made.limit(Stage.PREPARE)) == (0, 9)


def test_only_the_newest_attempts_are_kept() -> None:
    made = draft()
    for number in range(1, 103):
        attempt = Attempt(number=number, child="c", state=AttemptState.FAILED, started_at=timestamp(START))
        made.add_attempt(Stage.TRAIN, attempt, reason=f"after {number}")
    kept = made.stages[Stage.TRAIN]
    assert [attempt.number for attempt in kept.attempts] == list(range(2, 103))
    assert kept.reason == "after 102"


def test_the_shortest_wait_counts() -> None:
    made = draft()
    for seconds, wanted in ((5, 5), (7, 5), (3, 3)):
        made.look_again(seconds)
        assert made.requeue_after == wanted


def test_what_a_draft_collects() -> None:
    made = draft()
    assert made.wait("no\nroom") == "waits: no room" and made.waits == "no\nroom"
    made.tell("A", "one\nline")
    made.tell("B", "x" * 2000, warning=True)
    assert made.events == [Event(EventType.NORMAL, "A", "one line"), Event(EventType.WARNING, "B", "x" * 1021 + "...")]
    manifest = {
        "kind": "Job",
        "metadata": {"name": "n", "labels": {"kinema.dev/stage": "train", "kinema.dev/attempt": "1"}},
    }
    child = born(manifest, uid="u", now=START)
    made.remove(child)
    assert made.delete == [Deletion(child.kind, "n", "u")]
    assert (made.restarts, made.movement, made.fresh, made.create, made.waits) == (2, None, None, [], "no\nroom")


def test_a_node_is_blamed_only_for_what_may_be_its_fault() -> None:
    def ended(state: AttemptState, failure: FailureClass | None) -> Attempt:
        return Attempt(number=1, child="c", state=state, started_at=timestamp(START), failure=failure)

    assert blames_node(ended(AttemptState.FAILED, FailureClass.INFRASTRUCTURE))
    assert not blames_node(ended(AttemptState.FAILED, FailureClass.USER))
    assert not blames_node(ended(AttemptState.FAILED, None))
    assert not blames_node(ended(AttemptState.STOPPED, FailureClass.INFRASTRUCTURE))


def test_keys_are_whole_or_none() -> None:
    assert keys_of(KEYS) == keys_of({**KEYS, "novelty": "n"}) == Keys.model_validate(KEYS)
    assert keys_of({}) is None
    for name in KEYS:
        assert keys_of({**KEYS, name: ""}) is None
