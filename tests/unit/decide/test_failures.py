# SPDX-License-Identifier: Apache-2.0
"""Failures as data: from what a pod leaves to a class, and from the class to what follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_api.exits import Exit, FailureClass, Termination
from kinema_api.names import Stage
from kinema_api.status import Phase
from kinema_operator.conditions import REASONS
from kinema_operator.diagnosis import FIXES, OTHERWISE, fix_for
from kinema_operator.failures import (
    CHILD_DELETED,
    CONSEQUENCES,
    EXITS,
    LOG_PATTERNS,
    NO_RESULT,
    POD_REASONS,
    Failure,
)
from kinema_operator.observed import Child, ChildKind, PodEnd
from kinema_operator.verdicts import classify

from tests.unit.decide.story import START, Story, job, pod

pytestmark = pytest.mark.unit

CASES = yaml.safe_load((Path(__file__).parent / "data" / "failures.yaml").read_text())
FIRST = {case["failure"][0]: case for case in reversed(CASES)}
"""One case of each class."""


def end_of(
    *, code: int | None, message: str = "", reason: str = "", said: str = "", init: str = "", log: str = ""
) -> PodEnd:
    return replace(pod(code=code, message=message, reason=reason), message=said, init=init, log_tail=log)


def finished(*pods: PodEnd, message: str = "") -> Child:
    """A child that has failed."""
    return Child(
        kind=ChildKind.PYTORCH_JOB,
        name="wan-train-1",
        uid="uid-1",
        stage=Stage.TRAIN,
        attempt=1,
        created_at=START,
        finished=True,
        succeeded=False,
        deleting=False,
        message=message,
        pods=pods,
    )


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_what_is_read_from_each_end(case: dict[str, Any]) -> None:
    failure = classify(finished(end_of(**case["end"])))
    assert [str(failure.kind), failure.reason, failure.message] == [*case["failure"], case["message"]]
    assert failure.consequence.retry == case["retried"]
    assert (failure.node, failure.log_tail) == ("node-1", case["end"].get("log", ""))


@pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)
def test_what_follows_each_class_of_failure(case: dict[str, Any]) -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.end("wan-train-1", end_of(**case["end"]), succeeded=False)
    status = story.settle()
    attempt = status.stages[4].attempts[0]
    assert [str(attempt.failure), attempt.reason] == case["failure"]
    assert (status.phase is Phase.RUNNING) == case["retried"]
    assert attempt.node == "node-1"
    fix = CONSEQUENCES[FailureClass(case["failure"][0])].fix
    assert fix in status.diagnosis and attempt.message.rstrip(".") in status.diagnosis


def test_every_class_has_a_consequence_and_every_exit_code_agrees_with_it() -> None:
    assert set(CONSEQUENCES) == set(FailureClass)
    assert set(EXITS) == set(Exit) - {Exit.OK}
    for code, cause in EXITS.items():
        assert CONSEQUENCES[cause.kind].retry == code.retryable, code


def test_every_reason_is_documented() -> None:
    causes = [*EXITS.values(), *POD_REASONS.values(), *(cause for _, cause in LOG_PATTERNS)]
    reasons = {cause.reason for cause in causes} | {CHILD_DELETED.reason, NO_RESULT.reason}
    assert reasons <= set(REASONS)


def test_what_a_stage_left_reaches_the_attempt() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    stacks = "file:///kinema/volumes/ws/kinema/jobs/stacks.txt"
    left = Termination(code=Exit.STALLED, message="no step for 60 s", stacks=stacks, log_tail="step 41\nstep 42")
    story.end("wan-train-1", pod(code=71, termination=left), succeeded=False)
    attempt = story.settle().stages[4].attempts[0]
    assert (attempt.stacks, attempt.log_tail) == ("pvc://ws/kinema/jobs/stacks.txt", "step 41\nstep 42")


def test_a_clock_that_is_put_back_does_not_prolong_the_wait_after_a_failure() -> None:
    story = Story()
    story.start(Stage.TRAIN)
    story.fail("wan-train-1")
    story.wait(9)
    story.settle()
    assert "wan-train-2" not in story.children
    story.wait(-3600)
    story.settle()
    assert "wan-train-2" in story.children


def test_a_node_that_failed_twice_is_avoided() -> None:
    story = Story(job=job(policy={"restarts": {"limit": 5, "backoffSeconds": 0}}))
    story.start(Stage.TRAIN)
    for number in (1, 2):
        story.end(f"wan-train-{number}", pod(code=None, reason="NodeLost"), succeeded=False)
        story.settle()
    assert "not on node-1 if possible" in story.events[-1].message
    assert "node-1" in str(story.created[-1]["spec"])


def test_a_node_that_is_not_to_blame_is_not_avoided() -> None:
    story = Story(job=job(policy={"restarts": {"limit": 5, "backoffSeconds": 0}}))
    story.start(Stage.TRAIN)
    for number in (1, 2):
        story.fail(f"wan-train-{number}", code=Exit.COMMUNICATION)
    assert "node-1" not in str(story.created[-1]["spec"])


def test_a_child_whose_pods_are_gone_says_what_its_controller_said() -> None:
    gone = Failure(FailureClass.INFRASTRUCTURE, "PodsGone", "its pods are gone")
    assert classify(finished()) == gone
    assert classify(finished(pod(), message="BackoffLimitExceeded")) == replace(gone, message="BackoffLimitExceeded")


def test_what_a_pod_left_is_taken_over_whole() -> None:
    left = Termination(code=Exit.STALLED, message="no step", stacks="file:///s", log_tail="step 42")
    end = replace(pod(code=137, termination=left), log_tail="of the container")
    assert classify(finished(end)) == Failure(
        FailureClass.STALLED,
        "Stalled",
        "no step",
        exit_code=71,
        node="node-1",
        log_tail="step 42",
        stacks="file:///s",
    )
    silent = replace(end, termination=left.model_copy(update={"message": "", "log_tail": "", "stacks": None}))
    assert classify(finished(silent)) == Failure(
        FailureClass.STALLED,
        "Stalled",
        "pod pod-0 on node node-1 exited with 71",
        exit_code=71,
        node="node-1",
        log_tail="of the container",
    )
    nowhere = Failure(FailureClass.INTERNAL, "Killed", "pod pod-0 was killed, exit code 137", exit_code=137)
    assert classify(finished(replace(pod(code=137), node=""))) == nowhere


def test_the_first_to_fail_of_itself_decides() -> None:
    lost = pod(code=Exit.COMMUNICATION, message="lost", name="follower", after=1)
    stopped = pod(code=Exit.INTERRUPTED, message="stopped", name="stopped", after=0)
    own = pod(code=Exit.STORAGE, message="full", name="first", after=5)
    later = pod(code=Exit.DATA, message="empty", name="second", after=6)
    timeless = replace(pod(code=Exit.USER, message="wrong", name="timeless"), finished_at=None)
    fine = pod(name="fine", after=-9)
    assert classify(finished(fine, stopped, lost, timeless, later, own)).message == "full"
    assert classify(finished(lost, timeless)).message == "wrong"
    assert classify(finished(lost, stopped)).message == "stopped"
    evicted = replace(stopped, reason="Evicted")
    assert classify(finished(own, evicted)).reason == "Evicted"


LOGS = {
    "its own words": ("", "the message says: Connection reset by peer", ""),
    "its log's": ("", "", "Connection reset by peer"),
    "the container's log": ("Connection reset by peer", "", ""),
}


@pytest.mark.parametrize(("log", "message", "tail"), LOGS.values(), ids=LOGS)
def test_the_log_names_what_the_process_could_not(log: str, message: str, tail: str) -> None:
    left = Termination(code=Exit.INTERNAL, message=message, log_tail=tail)
    end = replace(pod(code=1, termination=left), log_tail=log)
    assert classify(finished(end)).reason == "CommunicationError"
    assert classify(finished(replace(end, termination=None))).reason == (
        "CommunicationError" if log else "InternalError"
    )


@pytest.mark.parametrize(("log", "tail"), [("MemoryError: no", ""), ("", "MemoryError: no")])
def test_what_must_begin_a_line_does_so_wherever_it_was_left(log: str, tail: str) -> None:
    left = Termination(code=Exit.INTERNAL, message="broken", log_tail=tail)
    assert classify(finished(replace(pod(code=1, termination=left), log_tail=log))).reason == "HostOutOfMemory"


WAITS = {
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.": "ask for fewer nodes or devices",
    "0/3 nodes are available: 3 node(s) had untolerated taint {npu: }.": "TrainingPool's tolerations",
    "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.": "nodeSelector",
    'a: ImagePullBackOff: Back-off pulling image "x"': "imagePullSecrets",
    'a: persistentvolumeclaim "ws" not found': "create that PersistentVolumeClaim",
    'a: FailedMount: MountVolume.SetUp failed for volume "ws"': "kubectl describe pvc",
    "FailedCreate: pods is forbidden: exceeded quota: lab": "ResourceQuota",
    'FailedCreate: pods "x" is forbidden: violates PodSecurity "restricted:latest"': "TrainingPool's security",
    "PyTorchJob wan-train-1 cannot be created: 404 page not found": "training-operator",
    "NoStatus: nobody has looked at PyTorchJob wan-train-1": "training-operator",
    "Queued: Job wan-check-1 is suspended until its queue admits it": "kubectl get workloads",
    'FailedCreate: error looking up service account: serviceaccount "trainer" not found': "serviceAccountName",
    "pod a on node n still ends": "delete its Node object",
    "Job wan-check-1 cannot be created: jobs.batch is forbidden": "the chart has it",
    'failed calling webhook "validator.pytorchjob.training-operator.kubeflow.org": no endpoints': "training-operator",
    'failed calling webhook "v.example": connection refused': "service behind",
    'admission webhook "v.example" denied the request: no': "podTemplate",
    "a: CreateContainerConfigError: secret not found": "ConfigMap or Secret",
    "0/1 nodes: 1 node(s) were unschedulable": "uncordon",
    "wan-check-1 exists and is not this job's": "rename",
    "something new": OTHERWISE,
}


@pytest.mark.parametrize(("cause", "fix"), WAITS.items(), ids=WAITS.values())
def test_what_is_waited_for_has_a_fix(cause: str, fix: str) -> None:
    assert fix in fix_for(cause)


def test_every_fix_is_tried() -> None:
    assert {fix_for(cause) for cause in WAITS} >= {fix for _, fix in FIXES}
