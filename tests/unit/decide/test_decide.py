# SPDX-License-Identifier: Apache-2.0
"""What the operator does about a job, seen from its status."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kinema_api.exits import Exit, Termination
from kinema_api.names import ANNOTATION_CONFIG, Stage
from kinema_api.status import AttemptState, ConditionStatus, Phase, StageState
from kinema_operator.observed import Decision, EventType

from tests.unit.decide.story import KEYS, PLATFORM, POOLS, Story, job, pod

pytestmark = pytest.mark.unit

ALL = [stage.value for stage in Stage]


def states(story: Story) -> dict[str, str]:
    return {stage.name.value: stage.state.value for stage in story.status.stages}


def test_a_job_runs_through_every_stage() -> None:
    story = Story()
    story.reach(Stage.SAMPLE)
    status = story.succeed("wan-sample-1", artifact="pvc://ws/kinema/jobs/lab/wan-3f2a9c1e/samples")
    assert status.phase is Phase.SUCCEEDED
    assert [child["metadata"]["name"] for child in story.created] == [f"wan-{stage}-1" for stage in ALL]
    assert states(story) == dict.fromkeys(ALL, "Succeeded")
    assert status.message == "done; results are in pvc://ws/kinema/jobs/lab/wan-3f2a9c1e/samples"
    assert status.workspace == "pvc://ws/kinema/jobs/lab/wan-3f2a9c1e"
    succeeded = status.condition("Succeeded")
    assert succeeded is not None and succeeded.status is ConditionStatus.TRUE
    assert status.finished_at is not None
    assert story.events[-1].reason == "JobSucceeded"


def test_a_finished_job_is_left_alone() -> None:
    story = Story()
    story.start(Stage.SAMPLE)
    story.succeed("wan-sample-1")
    story.children.clear()
    assert story.ask() == Decision()


def test_a_job_that_is_being_deleted_is_left_alone() -> None:
    story = Story()
    story.job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert story.ask() == Decision()


def test_a_stage_whose_artifact_exists_is_skipped_and_says_so() -> None:
    story = Story()
    status = story.reach(Stage.CONVERT, existing=["prepare", "features"])
    assert states(story)["prepare"] == states(story)["features"] == "Skipped"
    features = status.stages[2]
    assert features.reason == "ArtifactExists"
    assert features.artifact == "pvc://ws/kinema/artifacts/features/f1"
    assert features.message == "pvc://ws/kinema/artifacts/features/f1 exists already"
    assert [event.reason for event in story.events if event.reason == "StageSkipped"] == ["StageSkipped"] * 2
    assert "wan-features-1" not in story.children


def test_a_stage_that_found_its_artifact_made_by_another_job_counts_as_skipped() -> None:
    story = Story()
    story.start(Stage.FEATURES)
    story.succeed("wan-features-1", reason="ArtifactExists", message="another job made it")
    assert states(story)["features"] == "Skipped"
    assert states(story)["convert"] == "Running"


def test_the_worker_that_made_the_artifact_speaks_for_all() -> None:
    story = Story()
    story.start(Stage.FEATURES)
    idle, maker = (Termination(code=0, message="nothing to do"), Termination(code=0, message="made it", artifact="a"))
    story.end("wan-features-1", pod(termination=idle), pod(termination=maker, name="pod-1"))
    features = story.settle().stages[2]
    assert (features.artifact, features.message) == ("a", "made it")


def test_keys_of_check_reach_later_stages() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    template = story.created[-1]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    config = json.loads(template["metadata"]["annotations"][ANNOTATION_CONFIG])
    assert (config["featuresKey"], config["convertKey"]) == ("f1", "c1")


def test_a_failed_attempt_makes_a_new_one_after_a_wait() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    status = story.fail("wan-train-1", message="socket closed", code=Exit.COMMUNICATION)
    assert status.phase is Phase.RUNNING
    assert status.restarts == 1
    assert "wan-train-2" not in story.children
    assert story.ask().requeue_after == pytest.approx(10)
    assert status.message == "train: attempt 1 failed (CommunicationError): socket closed"
    story.wait(10)
    status = story.settle()
    assert story.children["wan-train-2"].attempt == 2
    assert status.message == "train: attempt 2 of at most 3 runs"
    assert story.events[-2].type is EventType.WARNING
    assert story.succeed("wan-train-2").stages[4].state is StageState.SUCCEEDED


def test_waits_double_and_the_cap_counts_every_failure() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    for attempt, wait in ((1, 10), (2, 20)):
        story.fail(f"wan-train-{attempt}")
        assert story.ask().requeue_after == pytest.approx(wait)
        story.wait(wait)
        story.settle()
    status = story.fail("wan-train-3", message="broken")
    assert status.phase is Phase.FAILED
    assert status.restarts == 3
    assert status.message == "train: attempt 3 failed (InternalError): broken; that was the last of 3 attempts"
    failed = status.condition("Failed")
    assert failed is not None and failed.reason == "InternalError"
    assert story.ask() == Decision()


def test_retries_of_a_stage_win_over_the_policy() -> None:
    story = Story(job=job(stages={"train": {"retries": 0}}))
    story.start(Stage.TRAIN)
    assert story.fail("wan-train-1").phase is Phase.FAILED


@pytest.mark.parametrize("code", [Exit.USER, Exit.DATA, Exit.WEIGHTS, Exit.NUMERICS, Exit.OUT_OF_MEMORY])
def test_what_a_retry_cannot_cure_fails_at_once(code: Exit) -> None:
    story = Story()
    story.settle()
    status = story.fail("wan-check-1", code=code, message="spec.dataset.uri: no videos; put some there")
    assert status.phase is Phase.FAILED
    assert status.message.endswith("spec.dataset.uri: no videos; put some there")


def test_the_member_that_failed_first_of_itself_gives_the_reason() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.end(
        "wan-train-1",
        pod(code=Exit.COMMUNICATION, message="peer closed", after=1, name="worker"),
        pod(code=Exit.NUMERICS, message="loss is nan at step 7", after=2, name="master"),
        succeeded=False,
    )
    status = story.settle()
    assert status.phase is Phase.FAILED
    assert status.stages[4].reason == "LossNotFinite"


def test_addresses_of_the_container_are_told_as_those_of_the_job() -> None:
    story = Story()
    story.reach(Stage.PREPARE)
    folder = "file:///kinema/volumes/ws/kinema/artifacts/prepare/p1"
    status = story.succeed("wan-prepare-1", artifact=folder, message=f"4 clips in {folder}")
    assert status.stages[1].artifact == "pvc://ws/kinema/artifacts/prepare/p1"
    assert status.stages[1].message == "4 clips in pvc://ws/kinema/artifacts/prepare/p1"
    status = story.fail("wan-features-1", message="/kinema/volumes/ws/kinema is full: free some space")
    assert "pvc://ws/kinema is full" in status.message


def test_a_killed_container_is_retried_and_named() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.end("wan-train-1", pod(code=137), succeeded=False)
    status = story.settle()
    attempt = status.stages[4].attempts[0]
    assert (attempt.reason, attempt.exit_code) == ("Killed", 137)
    assert attempt.message == "pod pod-0 on node node-1 was killed, exit code 137"


def test_host_memory_is_told_from_device_memory() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.end("wan-train-1", pod(code=137, reason="OOMKilled"), succeeded=False)
    attempt = story.settle().stages[4].attempts[0]
    assert attempt.reason == "HostOutOfMemory"
    assert "raise the stage's resources.memory" in attempt.message


def test_no_second_attempt_while_a_pod_of_the_first_lives() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.end("wan-train-1", pod(code=137), pod(code=None, live=True), succeeded=False)
    decision = story.step()
    assert decision.create == () and decision.requeue_after == pytest.approx(2)
    assert story.status.stages[4].attempts[0].state is AttemptState.RUNNING
    assert story.status.message.startswith("train: waits: pod pod-0 on node node-1 still ends")


def test_a_child_deleted_by_hand_is_made_again_once_its_pods_are_gone() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    del story.children["wan-train-1"]
    story.stray_pods = True
    story.settle()
    story.wait(10)
    assert story.step().create == ()
    story.stray_pods = False
    story.settle()
    attempts = story.status.stages[4].attempts
    assert [attempt.reason for attempt in attempts] == ["ChildDeleted", ""]
    assert "wan-train-2" in story.children


def test_stray_pods_are_waited_for_even_without_a_backoff() -> None:
    story = Story(job=job(policy={"restarts": {"backoffSeconds": 0}}))
    story.start(Stage.TRAIN)
    del story.children["wan-train-1"]
    assert story.step().create == (), "the failure is recorded first, then strays are looked for"
    story.stray_pods = True
    assert story.step().create == ()
    story.stray_pods = False
    assert len(story.step().create) == 1


def test_a_child_replaced_behind_the_operators_back_does_not_count_as_its_own() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.children["wan-train-1"] = replace(story.children["wan-train-1"], uid="another")
    story.settle()
    assert story.status.stages[4].attempts[0].reason == "ChildDeleted"


def test_a_name_held_by_an_earlier_owner_is_waited_for() -> None:
    story = Story()
    story.foreign = frozenset({"wan-check-1"})
    decision = story.step()
    assert decision.create == ()
    assert decision.requeue_after == pytest.approx(2)
    assert "wan-check-1 exists and is not this job's" in story.status.message
    story.foreign = frozenset()
    story.settle()
    assert "wan-check-1" in story.children


def test_what_the_api_server_refuses_is_told_and_tried_again() -> None:
    story = Story()
    story.refused = {"wan-check-1": "Job wan-check-1 cannot be created: exceeded quota: lab"}
    status = story.settle()
    assert status.phase is Phase.RUNNING
    assert status.message == "check: waits: Job wan-check-1 cannot be created: exceeded quota: lab"
    assert status.stages[0].attempts == []
    assert len(story.ask().create) == 1
    story.refused = {}
    assert len(story.settle().stages[0].attempts) == 1


def test_a_crash_between_create_and_status_changes_nothing() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    lost = json.loads(json.dumps(story.job["status"]))
    story.end("wan-train-1", pod(termination=Termination(code=0, artifact="a")))
    story.settle()
    assert "wan-export-1" in story.children
    story.job["status"] = lost
    assert story.settle().stage is Stage.EXPORT
    assert story.deleted == []


def test_a_check_without_a_result_is_tried_again() -> None:
    story = Story()
    story.settle()
    story.end("wan-check-1", pod())
    assert story.settle().stages[0].attempts[0].reason == "NoResult"


def test_what_a_waiting_child_waits_for_is_told() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    waiting = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    story.children["wan-train-1"] = replace(story.children["wan-train-1"], waiting=waiting)
    assert story.settle().message == f"train: waits: {waiting}"


def test_children_that_nothing_explains_are_deleted() -> None:
    story = Story()
    story.reach(Stage.PREPARE)
    stray = replace(story.children["wan-prepare-1"], name="wan-prepare-7", uid="x", attempt=7)
    story.children["wan-prepare-7"] = stray
    story.settle()
    assert story.deleted == ["wan-prepare-7"]


def test_an_upgrade_of_operator_or_pool_disturbs_no_running_job() -> None:
    story = Story()
    story.start(Stage.FEATURES)
    story.platform = replace(PLATFORM, images={})
    story.pools = {}
    story.succeed("wan-features-1")
    container = story.created[-1]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "kinema/wan2.1:1"


def test_a_running_job_outlives_a_change_of_the_operators_version() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.job["status"]["resolved"]["stages"]["train"]["novelty"] = 1
    story.job["status"]["progress"] = {"stage": "train", "novelty": 1}
    story.job["spec"]["stages"] = {"train": {"novelty": 1}}
    status = story.settle()
    assert status.phase is Phase.RUNNING and "spec.stages.train.novelty" in status.message
    assert "wan-train-1" in story.children and story.deleted == []
    del story.job["spec"]["stages"]
    story.succeed("wan-train-1")
    assert story.status.stage is Stage.EXPORT


def test_an_ended_job_answers_a_later_edit_of_its_policy() -> None:
    story = Story()
    story.start(Stage.SAMPLE)
    story.succeed("wan-sample-1")
    story.job["metadata"]["generation"] = 2
    status = story.settle()
    assert status.observed_generation == 2
    succeeded = status.condition("Succeeded")
    assert succeeded is not None and succeeded.observed_generation == 2
    assert status.phase is Phase.SUCCEEDED


def test_a_check_that_leaves_only_some_keys_is_tried_again() -> None:
    story = Story()
    story.settle()
    story.end("wan-check-1", pod(termination=Termination(code=0, keys={"prepare": "p1"})))
    assert story.settle().stages[0].attempts[0].reason == "NoResult"


def test_progress_is_the_servers_and_never_written() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.job["status"]["progress"] = {"stage": "train", "percent": "42%"}
    assert story.ask().status is None
    story.wait(1)
    story.end("wan-train-1", pod(termination=Termination(code=0, artifact="a")))
    decision = story.ask()
    assert decision.status is not None and "progress" not in decision.status


REFUSALS = {
    "unknown model": (
        {"model": {"name": "wan2.1-t2v-13b", "weights": {"uri": "pvc://ws/w"}}},
        "UnknownModel",
        "did you mean wan2.1-t2v-1.3b",
    ),
    "task": (
        {"model": {"name": "wan2.1-t2v-1.3b", "task": "i2v", "weights": {"uri": "pvc://ws/w"}}},
        "TaskNotSupported",
        "wan2.1-t2v-1.3b cannot do i2v; write t2v or v2v, or name a model that can do i2v",
    ),
    "frames": ({"stages": {"prepare": {"video": {"frames": 16}}}}, "InvalidVideo", "16 is not 4n+1; use 13 or 17"),
    "height": (
        {"stages": {"prepare": {"video": {"height": 100}}}},
        "InvalidVideo",
        "spec.stages.prepare.video.height: 100 does not divide by 16; use 96 or 112",
    ),
    "address": ({"storage": {"uri": "pvc://ws/../other"}}, "InvalidAddress", "may not contain '..'"),
    "needed stage": (
        {"stages": {"convert": {"enabled": False}}},
        "StageRequired",
        "spec.stages.convert.enabled: later stages need convert",
    ),
    "warm-up": (
        {"stages": {"train": {"schedule": {"warmupSteps": 300}}}},
        "InvalidSchedule",
        "300 steps of warm-up do not fit into 300 steps; set it to 30 or so",
    ),
    "sample alone": (
        {"stages": {"export": {"enabled": False}}},
        "StageRequired",
        "enable export, or disable sample too",
    ),
}


@pytest.mark.parametrize(("spec", "reason", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_job_that_cannot_run_fails_before_it_books_anything(
    spec: dict[str, object], reason: str, message: str
) -> None:
    story = Story(job=job(**spec))
    status = story.settle()
    assert status.phase is Phase.FAILED
    assert message in status.message
    accepted = status.condition("Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.reason) == (ConditionStatus.FALSE, reason)
    assert story.created == []


WAITS = {
    "newer spec": (
        {"defaults": {"pool": "cpu", "novelty": 1}},
        "InvalidSpec",
        "spec.defaults.novelty: Extra inputs are not permitted; this operator and the installed CRD may be",
    ),
    "no pool": ({"defaults": {"pool": "h100"}}, "UnknownPool", "there is no TrainingPool h100; this cluster has cpu"),
    "devices": (
        {"defaults": {"pool": "cpu", "devicesPerNode": 4}},
        "NotEnoughDevices",
        "devicesPerNode: 4, but a node of pool cpu has 2",
    ),
}


@pytest.mark.parametrize(("spec", "reason", "message"), WAITS.values(), ids=WAITS.keys())
def test_a_job_waits_for_what_an_administrator_can_bring(spec: dict[str, object], reason: str, message: str) -> None:
    story = Story(job=job(**spec))
    status = story.settle()
    assert status.phase is Phase.PENDING
    assert message in status.message
    story.job["spec"]["defaults"].pop("novelty", None)
    story.pools = {"cpu": POOLS["cpu"].model_copy(update={"devices_per_node": 8}), "h100": POOLS["cpu"]}
    assert story.settle().phase is Phase.RUNNING
    assert "wan-check-1" in story.children


def test_every_decision_is_idempotent_along_the_whole_job() -> None:
    story = Story()
    for stage in ALL:
        story.settle()
        first = story.ask()
        assert first.create == () and first.status is None and first.events == ()
        keys: dict[str, Any] = {"keys": KEYS} if stage == "check" else {}
        story.succeed(f"wan-{stage}-1", **keys)
    assert story.status.phase is Phase.SUCCEEDED
