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
from kinema_operator.diagnosis import FIXES, OTHERWISE, fix_for, joined
from kinema_operator.failures import CHILD_DELETED, CONSEQUENCES, EXITS, LOG_PATTERNS, NO_RESULT, POD_REASONS
from kinema_operator.observed import PodEnd

from tests.unit.decide.story import Story, job, pod

pytestmark = pytest.mark.unit

CASES = yaml.safe_load((Path(__file__).parent / "data" / "failures.yaml").read_text())


def end_of(
    *, code: int | None, message: str = "", reason: str = "", said: str = "", init: str = "", log: str = ""
) -> PodEnd:
    return replace(pod(code=code, message=message, reason=reason), message=said, init=init, log_tail=log)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_what_follows_each_failure(case: dict[str, Any]) -> None:
    story = Story()
    story.reach(Stage.TRAIN)
    story.end("wan-train-1", end_of(**case["end"]), succeeded=False)
    status = story.settle()
    attempt = status.stages[4].attempts[0]
    assert [str(attempt.failure), attempt.reason] == case["failure"]
    assert (status.phase is Phase.RUNNING) == case["retried"]
    assert attempt.node == "node-1"
    assert attempt.log_tail == case["end"].get("log", "")
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
    story.reach(Stage.TRAIN)
    stacks = "file:///kinema/volumes/ws/kinema/jobs/stacks.txt"
    left = Termination(code=Exit.STALLED, message="no step for 60 s", stacks=stacks, log_tail="step 41\nstep 42")
    story.end("wan-train-1", pod(code=71, termination=left), succeeded=False)
    attempt = story.settle().stages[4].attempts[0]
    assert (attempt.stacks, attempt.log_tail) == ("pvc://ws/kinema/jobs/stacks.txt", "step 41\nstep 42")


def test_a_clock_that_is_put_back_does_not_prolong_the_wait_after_a_failure() -> None:
    story = Story()
    story.reach(Stage.TRAIN)
    story.fail("wan-train-1")
    story.wait(9)
    story.settle()
    assert "wan-train-2" not in story.children
    story.wait(-3600)
    story.settle()
    assert "wan-train-2" in story.children


def test_a_node_that_failed_twice_is_avoided() -> None:
    story = Story(job=job(policy={"restarts": {"limit": 5, "backoffSeconds": 0}}))
    story.reach(Stage.TRAIN)
    for number in (1, 2):
        story.end(f"wan-train-{number}", pod(code=None, reason="NodeLost"), succeeded=False)
        story.settle()
    assert "not on node-1 if possible" in story.events[-1].message
    assert "node-1" in str(story.created[-1]["spec"])


def test_a_node_that_is_not_to_blame_is_not_avoided() -> None:
    story = Story(job=job(policy={"restarts": {"limit": 5, "backoffSeconds": 0}}))
    story.reach(Stage.TRAIN)
    for number in (1, 2):
        story.fail(f"wan-train-{number}", code=Exit.COMMUNICATION)
    assert "node-1" not in str(story.created[-1]["spec"])


def test_a_child_whose_pods_are_gone_says_what_its_controller_said() -> None:
    story = Story()
    story.reach(Stage.TRAIN)
    story.end("wan-train-1", succeeded=False)
    assert story.settle().stages[4].attempts[0].message == "its pods are gone"


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
    story = Story()
    story.reach(Stage.TRAIN)
    story.children["wan-train-1"] = replace(story.children["wan-train-1"], waiting=cause)
    assert story.settle().diagnosis == joined(f"train waits: {cause}", fix_for(cause))


def test_every_fix_is_tried() -> None:
    assert {fix_for(cause) for cause in WAITS} >= {fix for _, fix in FIXES}
