# SPDX-License-Identifier: Apache-2.0
"""What a job's policy makes of its life: pause, end, run again, limits of time, deletion."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kinema_api.exits import Exit, FailureClass, Termination
from kinema_api.names import Stage
from kinema_api.status import AttemptState, ConditionStatus, JobStatus, Phase, StageState
from kinema_operator.conditions import page
from kinema_operator.observed import Decision
from kinema_operator.status import timestamp

from tests.unit.decide.story import START, Story, job, pod

pytestmark = pytest.mark.unit


def train(story: Story) -> Any:
    return story.status.stages[4]


def edit(story: Story, **policy: Any) -> JobStatus:
    story.job["spec"].setdefault("policy", {}).update(policy)
    story.job["metadata"]["generation"] += 1
    return story.settle()


def running(story: Story, **more: Any) -> None:
    story.children["wan-train-1"] = replace(story.children["wan-train-1"], running=True, **more)
    story.settle()


def reason(status: JobStatus, kind: str) -> tuple[ConditionStatus, str]:
    condition = status.condition(kind)
    assert condition is not None
    return condition.status, condition.reason


def test_suspend_stops_what_runs_and_resume_starts_the_next_attempt() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    status = edit(story, suspend=True)
    assert status.phase is Phase.SUSPENDED
    assert reason(status, "Suspended") == (ConditionStatus.TRUE, "SuspendRequested")
    assert story.deleted == ["wan-train-1"]
    story.wait(100)
    story.stray_pods = True
    status = edit(story, suspend=False)
    assert (status.suspended_seconds, status.suspended_at) == (100, None)
    assert "wan-train-2" not in story.children and "still end" in status.message
    story.stray_pods = False
    status = story.settle()
    assert [attempt.state for attempt in train(story).attempts] == [AttemptState.STOPPED, AttemptState.RUNNING]
    assert (train(story).failures, status.restarts) == (0, 0)


def test_what_is_created_suspended_starts_nothing() -> None:
    story = Story(job=job(policy={"suspend": True}))
    assert story.settle().phase is Phase.SUSPENDED
    assert story.created == [] and story.status.started_at is None


def test_the_status_says_that_an_attempt_is_stopped_before_its_child_goes() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.job["spec"]["policy"]["suspend"] = True
    decision = story.ask()
    assert decision.status is not None and len(decision.delete) == 1
    story.job["status"] = decision.status  # killed before the deletion
    assert [deletion.name for deletion in story.ask().delete] == ["wan-train-1"]


def test_a_child_that_has_finished_by_itself_counts_as_it_finished() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.end("wan-train-1", pod(termination=Termination(code=0, artifact="a")))
    edit(story, suspend=True)
    assert train(story).state is StageState.SUCCEEDED
    assert "wan-export-1" not in story.children


def test_cancel_ends_a_job_for_good() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    status = edit(story, cancel=True)
    assert status.phase is Phase.CANCELLED
    assert reason(status, "Failed") == (ConditionStatus.TRUE, "Cancelled")
    assert story.deleted == ["wan-train-1"]
    status = edit(story, retry={"number": 1})
    assert (status.phase, status.retry) == (Phase.CANCELLED, 1)
    assert story.events[-1].reason == "RetryIgnored"


def test_a_job_that_waits_for_its_pool_can_be_cancelled() -> None:
    story = Story(pools={})
    story.settle()
    assert edit(story, cancel=True).phase is Phase.CANCELLED


def test_a_deadline_leaves_suspended_time_out() -> None:
    story = Story(job=job(policy={"deadlineSeconds": 100}))
    story.start(Stage.TRAIN)
    story.wait(60)
    edit(story, suspend=True)
    story.wait(1000)
    edit(story, suspend=False)
    assert story.ask().requeue_after == pytest.approx(40)
    story.wait(40)
    status = story.settle()
    assert reason(status, "Failed") == (ConditionStatus.TRUE, "DeadlineExceeded")
    assert train(story).attempts[-1].failure is FailureClass.TIMEOUT
    assert "deadlineSeconds (100)" in status.diagnosis


def test_a_timeout_counts_from_the_moment_that_all_pods_run() -> None:
    story = Story(job=job(stages={"train": {"timeoutSeconds": 50}}))
    story.start(Stage.TRAIN)
    story.wait(500)
    running(story)
    assert story.ask().requeue_after == pytest.approx(50)
    story.wait(50)
    story.settle()
    assert (train(story).attempts[0].reason, train(story).failures) == ("Timeout", 1)
    assert story.deleted == ["wan-train-1"]
    story.wait(10)
    story.settle()
    assert "wan-train-2" in story.children


MOVES = {
    "no data": (None, None, ConditionStatus.UNKNOWN, "NoProgressData"),
    "fresh": (10, None, ConditionStatus.TRUE, "ProgressPushed"),
    "old, log unknown": (500, None, ConditionStatus.UNKNOWN, "NoLogData"),
    "old, log fresh": (500, 5, ConditionStatus.TRUE, "LogMoves"),
}


@pytest.mark.parametrize(("pushed", "log", "status", "word"), MOVES.values(), ids=MOVES.keys())
def test_a_stall_is_called_only_where_both_sources_are_old(
    pushed: float | None, log: float | None, status: ConditionStatus, word: str
) -> None:
    story = stalling(pushed, log)
    assert reason(story.settle(), "Progressing") == (status, word)
    assert train(story).attempts[0].state is AttemptState.RUNNING


def stalling(pushed: float | None, log: float | None) -> Story:
    story = Story(job=job(stages={"train": {"stallSeconds": 60}}))
    story.start(Stage.TRAIN)
    running(story)
    story.wait(1000)
    if pushed is not None:
        moment = timestamp(story.now - timedelta(seconds=pushed))
        metrics = {"seconds_starting": "10", "seconds_productive": "300", "seconds_saved": "200", "odd": "x"}
        story.job["status"]["progress"] = {"stage": "train", "attempt": 1, "updatedAt": moment, "metrics": metrics}
    last = None if log is None else story.now - timedelta(seconds=log)
    story.children["wan-train-1"] = replace(story.children["wan-train-1"], last_log=last)
    return story


def test_a_stalled_attempt_is_stopped_and_tried_again_and_its_unsaved_work_is_lost() -> None:
    story = stalling(500, 500)
    status = story.settle()
    assert train(story).attempts[0].failure is FailureClass.STALLED
    assert story.deleted == ["wan-train-1"]
    seconds = status.usage.seconds
    assert (seconds.starting, seconds.productive, seconds.lost) == (10, 200, 790)


def test_a_retry_starts_from_the_stage_that_failed() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.fail("wan-train-1", code=Exit.NUMERICS)
    story.wait(30)
    status = edit(story, retry={"number": 1})
    assert (status.phase, status.retry, status.finished_at) == (Phase.RUNNING, 1, None)
    assert [attempt.number for attempt in train(story).attempts] == [1, 2]
    assert (train(story).failures, status.restarts) == (0, 1)
    assert status.started_at == timestamp(START + timedelta(seconds=30))


def test_a_retry_from_check_resolves_everything_anew() -> None:
    story = Story()
    story.reach(Stage.TRAIN)
    story.job["status"]["resolved"]["pins"] = {"weights": "0f1e"}
    story.platform = replace(story.platform, images=dict.fromkeys(story.platform.images, "newer"))
    story.fail("wan-train-1", code=Exit.USER)
    status = edit(story, retry={"number": 1, "stage": "check"})
    assert status.stage is Stage.CHECK and status.resolved is not None and status.resolved.keys == {}
    assert "wan-check-2" in story.children
    assert (status.resolved.pins, status.resolved.images["check"]) == ({}, "kinema/stage:1"), "the rest stays frozen"


def test_a_retry_of_a_later_stage_leaves_no_earlier_one_undone() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.fail("wan-train-1", code=Exit.USER)
    assert edit(story, retry={"number": 1, "stage": "sample"}).stage is Stage.TRAIN


IGNORED = {
    "still running": (Stage.TRAIN, False, {"number": 1}, "has not ended"),
    "succeeded without a stage": (Stage.SAMPLE, True, {"number": 1}, "no stage has failed"),
}


@pytest.mark.parametrize(("stage", "end", "retry", "why"), IGNORED.values(), ids=IGNORED.keys())
def test_a_retry_that_makes_no_sense_is_told(stage: Stage, end: bool, retry: dict[str, Any], why: str) -> None:
    story = Story()
    story.start(stage)
    if end:
        story.succeed("wan-sample-1")
    before = story.status.phase
    status = edit(story, retry=retry)
    assert (status.phase, status.retry) == (before, 1)
    assert [event.message for event in story.events if event.reason == "RetryIgnored" and why in event.message]


def test_a_job_is_deleted_when_its_time_after_the_end_is_over() -> None:
    story = Story(job=job(policy={"ttlSecondsAfterFinished": 60}))
    story.settle()
    story.fail("wan-check-1", code=Exit.USER)
    assert story.ask() == Decision(requeue_after=60)
    story.wait(60)
    assert story.ask() == Decision(delete_job=True)


@pytest.mark.parametrize(
    ("cleanup", "gone"), [("none", []), ("succeeded", ["wan-check-1"]), ("all", ["wan-check-1", "wan-prepare-1"])]
)
def test_children_of_an_ended_job_are_cleaned_up(cleanup: str, gone: list[str]) -> None:
    story = Story(job=job(policy={"cleanup": cleanup}))
    story.reach(Stage.PREPARE)
    story.fail("wan-prepare-1", code=Exit.USER)
    assert story.deleted == gone


def test_a_new_stage_clears_the_columns_of_the_last_and_keeps_the_loss() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.job["status"]["progress"] = {"stage": "train", "percent": "100%", "percentage": 100, "loss": "0.1"}
    story.end("wan-train-1", pod(termination=Termination(code=0, artifact="a")))
    progress = story.ask().progress
    assert progress is not None and "updatedAt" not in progress
    assert (progress["stage"], progress["percent"], progress["loss"]) == ("export", "", "0.1")


def test_seconds_that_a_stage_accounts_for_reach_the_ledger() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.wait(100)
    told = {"starting": 5, "productive": 60, "data": 10}
    ended = replace(pod(termination=Termination(code=0, artifact="a", seconds=told)), started_at=START)
    began = replace(ended, started_at=START + timedelta(seconds=20))
    story.end("wan-train-1", began)
    seconds = story.settle().usage.seconds
    assert seconds.model_dump() == {
        "productive": 60, "queued": 20, "starting": 10, "data": 10, "checkpoint": 0, "lost": 0
    }  # fmt: skip
    assert story.status.usage.accelerator_hours == {}


def test_the_page_of_conditions_is_up_to_date() -> None:
    assert (Path(__file__).parents[3] / "docs" / "conditions.md").read_text() == page()
