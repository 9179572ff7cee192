# SPDX-License-Identifier: Apache-2.0
"""The operator as it is installed, with its own account and rules, against a real API server and real controllers.

Only kubelet is pretended, so that pods end as a test wants them to.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinema_api.exits import Exit
from kinema_cluster.control_plane import ControlPlane, control_plane

from tests.controlplane.installation import HOME, install, kubeconfig
from tests.controlplane.kubelet import Kubelet, badly
from tests.controlplane.process import Operator, written
from tests.controlplane.team import DEADLINE, STAGES, Team, make_team
from tests.waiting import until

pytestmark = pytest.mark.controlplane

Raw = dict[str, Any]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane whose only node is that of the pretended kubelet."""
    with control_plane(name=f"operator-{os.getpid()}", nodes=0) as running:
        install(running)
        yield running


@pytest.fixture(scope="module")
def kubelet(plane: ControlPlane) -> Iterator[Kubelet]:
    with Kubelet(plane) as running:
        yield running
        assert running.error is None


@pytest.fixture(scope="module")
def operator(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """A running operator that knows itself by a token of its own account."""
    folder = tmp_path_factory.mktemp("operator")
    running = Operator(folder, *written(folder, kubeconfig(plane)))
    running.start()
    until("the operator is not ready", running.ready)
    yield running
    if running.process is not None and running.process.poll() is None:
        assert running.stop() == 0, running.log()


@pytest.fixture
def team(plane: ControlPlane, kubelet: Kubelet, operator: Operator) -> Iterator[Team]:
    made = make_team(plane, kubelet)
    overlaps = len(kubelet.overlaps)
    yield made
    if operator.process is None or operator.process.poll() is not None:
        operator.start()
        until("the operator is not ready", operator.ready)
    # Whatever a test was about: two attempts of a stage never ran at the same time.
    assert kubelet.overlaps[overlaps:] == []
    made.kubectl("delete", "vtj", "--all", "--wait=false")


def test_a_job_goes_from_apply_to_succeeded(team: Team) -> None:
    team.apply()
    team.kubectl("wait", "vtj/wan", "--for=condition=Succeeded", "--timeout=60s")
    status = team.status()
    assert [entry["name"] for entry in status["stages"]] == STAGES
    assert {entry["state"] for entry in status["stages"]} == {"Succeeded"}
    assert {entry["type"]: entry["status"] for entry in status["conditions"]} == {
        "Accepted": "True",
        "Running": "False",
        "Succeeded": "True",
        "Failed": "False",
        "Suspended": "False",
        "Progressing": "Unknown",
    }
    assert status["restarts"] == 0
    assert status["resolved"]["keys"]["features"] == "f1"
    children = team.children()
    assert sorted(children) == sorted(f"wan-{stage}-1" for stage in STAGES)
    gang = children["wan-train-1"]["spec"]["pytorchReplicaSpecs"]
    assert {role: entry["replicas"] for role, entry in gang.items()} == {"Master": 1, "Worker": 1}
    assert "Succeeded" in team.kubectl("get", "vtj", "wan")
    no_trace_of_kopf(team.job())
    told_once(team)


def no_trace_of_kopf(job: Raw) -> None:
    assert "finalizers" not in job["metadata"]
    assert list(job["metadata"]["annotations"]) == ["kubectl.kubernetes.io/last-applied-configuration"]


def told_once(team: Team) -> None:
    told = team.told()
    assert len(told) == len(set(told))
    assert [reason for reason, _ in told].count("StageStarted") == len(STAGES)
    assert [reason for reason, _ in told].count("JobSucceeded") == 1


def test_a_failed_attempt_is_followed_by_a_new_one_until_the_limit(team: Team) -> None:
    team.rules.failures["prepare"] = [badly(Exit.STORAGE, "the workspace is full")] * 2
    team.apply()
    status = team.reaches("Succeeded")
    attempts = team.stage("prepare")["attempts"]
    assert [entry["state"] for entry in attempts] == ["Failed", "Failed", "Succeeded"]
    assert (attempts[0]["exitCode"], attempts[0]["reason"]) == (66, "StorageError")
    assert "the workspace is full" in attempts[0]["message"]
    assert status["restarts"] == 2


def test_what_the_user_must_mend_is_not_tried_again(team: Team) -> None:
    team.rules.failures["check"] = [badly(Exit.USER, "dataset.uri: there is no such folder")]
    team.apply()
    team.kubectl("wait", "vtj/wan", "--for=condition=Failed", "--timeout=60s")
    assert "there is no such folder" in team.status()["message"]
    assert list(team.children()) == ["wan-check-1"]


def test_a_training_member_that_fails_ends_the_attempt_and_the_gang(team: Team) -> None:
    team.rules.failures["train"] = [badly(Exit.STALLED, "no step for 600 s")]
    team.apply()
    team.reaches("Succeeded")
    attempts = team.stage("train")["attempts"]
    assert [entry["state"] for entry in attempts] == ["Failed", "Succeeded"]
    assert attempts[0]["reason"] == "Stalled"


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_a_child_deleted_by_hand_is_replaced(team: Team, stage: str) -> None:
    team.rules.hold.add(stage)
    team.apply()
    team.runs(stage)
    team.kubectl("delete", "pytorchjob" if stage == "train" else "job", f"wan-{stage}-1", "--wait=false")
    team.runs(stage, attempt=2)
    team.rules.hold.clear()
    team.reaches("Succeeded")
    attempts = team.stage(stage)["attempts"]
    assert [entry["state"] for entry in attempts] == ["Failed", "Succeeded"]
    assert attempts[0]["reason"] == "ChildDeleted"


def test_a_deleted_job_leaves_no_child(team: Team) -> None:
    team.rules.hold.add("train")
    team.apply()
    team.runs("train")
    team.kubectl("delete", "vtj", "wan", "--timeout=30s")
    until("children are left", lambda: not team.children() and not team.pods())


def test_a_job_of_the_same_name_is_not_confused_with_the_one_before(team: Team) -> None:
    team.rules.hold.add("prepare")
    first = team.apply()
    team.runs("prepare")
    team.kubectl("delete", "vtj", "wan", "--wait=true", "--timeout=30s")
    second = team.apply()
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    team.rules.hold.clear()
    status = team.reaches("Succeeded")
    assert status["restarts"] == 0
    assert all(len(entry["attempts"]) == 1 for entry in status["stages"])
    owners = {item["metadata"]["ownerReferences"][0]["uid"] for item in team.children().values()}
    assert owners == {second["metadata"]["uid"]}


def test_a_child_of_somebody_else_is_not_touched(team: Team) -> None:
    pod = {"restartPolicy": "Never", "containers": [{"name": "pytorch", "image": "x"}]}
    stranger = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "wan-check-1"},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }
    team.kubectl("apply", "-f", "-", text=json.dumps(stranger))
    team.apply()
    until("nobody says why", lambda: "wan-check-1" in team.stage("check").get("message", ""))
    team.kubectl("delete", "job", "wan-check-1")
    team.reaches("Succeeded")


def test_a_job_without_its_pool_waits_for_it(team: Team) -> None:
    pool = {
        "apiVersion": "kinema.dev/v1alpha1",
        "kind": "TrainingPool",
        "metadata": {"name": "later"},
        "spec": {"accelerator": "cpu", "devicesPerNode": 1},
    }
    team.apply(defaults={"pool": "later", "nodes": 1})
    until("not refused", lambda: "later" in team.status().get("message", ""))
    assert team.status()["phase"] == "Pending"
    team.plane.apply([pool])
    team.reaches("Succeeded")
    team.plane.kubectl("delete", "tpool", "later")


def test_a_child_that_nobody_may_create_says_so_and_runs_when_it_may(team: Team) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    team.kubectl("apply", "-f", "-", text=json.dumps(quota))
    time_of_quota = f"/api/v1/namespaces/{team.namespace}/resourcequotas/none"
    until("the quota is not in force", lambda: team.plane.api.get(time_of_quota)["status"].get("hard"))
    team.apply()

    def refused() -> list[Raw]:
        events = json.loads(team.kubectl("get", "events", "-o", "json"))["items"]
        return [entry for entry in events if entry["reason"] == "CreateRefused"]

    assert "exceeded quota" in until("nobody says why", refused)[0]["message"]
    until("the status does not say why", lambda: "exceeded quota" in team.status().get("message", ""))
    team.kubectl("delete", "resourcequota", "none")
    team.reaches("Succeeded")


def test_a_pod_that_does_not_start_is_explained(team: Team) -> None:
    team.rules.unready = True
    team.apply()
    until("nobody says why", lambda: "not started yet" in team.status().get("message", ""))
    team.rules.unready = False
    assert "not started yet" not in team.reaches("Succeeded")["message"]


def push(team: Team, stage: str) -> None:
    """Write progress as the server does."""
    progress = {"stage": stage, "attempt": 1, "percentage": 42, "percent": "42%", "loss": "0.5"}
    body = {
        "apiVersion": "kinema.dev/v1alpha1",
        "kind": "VideoTrainingJob",
        "metadata": {"name": "wan"},
        "status": {"progress": progress},
    }
    path = f"/apis/kinema.dev/v1alpha1/namespaces/{team.namespace}/videotrainingjobs/wan/status"
    query = "?fieldManager=kinema-server&force=true"
    team.plane.api.request("PATCH", path + query, body, content_type="application/apply-patch+yaml")
    assert "42%" in team.kubectl("get", "vtj", "wan")


def test_progress_of_the_server_survives_the_operators_writes(team: Team) -> None:
    last = STAGES[-1]
    team.rules.hold.add(last)
    team.apply()
    team.runs(last)
    push(team, last)
    team.rules.hold.clear()
    assert team.reaches("Succeeded")["progress"]["percentage"] == 42


def test_a_stage_that_begins_does_not_show_the_progress_of_the_one_before(team: Team) -> None:
    team.rules.hold |= {"train", "export"}
    team.apply()
    team.runs("train")
    push(team, "train")
    team.rules.hold.remove("train")
    team.runs("export")
    progress = until("the progress of train stays", lambda: shown_of(team, "export"))
    assert (progress["percentage"], progress["loss"]) == (0, "0.5")
    assert "42%" not in team.kubectl("get", "vtj", "wan")


def shown_of(team: Team, stage: str) -> Raw:
    """The progress in the status where it is of the stage, else nothing."""
    progress: Raw = team.status().get("progress") or {}
    return progress if progress.get("stage") == stage else {}


@pytest.mark.parametrize("seed", range(3))
def test_an_operator_killed_at_any_step_goes_on_where_it_was(team: Team, operator: Operator, seed: int) -> None:
    """SIGKILL again and again, each time right after something has changed in the namespace."""
    draw = random.Random(seed)
    team.apply()
    deadline = time.monotonic() + 2 * DEADLINE
    seen = ""
    patience = draw.randrange(1, 6)
    while team.status().get("phase") != "Succeeded":
        assert time.monotonic() < deadline, team.status()
        versions = [item["metadata"]["resourceVersion"] for item in (team.job(), *team.children().values())]
        if str(versions) == seen:
            time.sleep(0.01)
            continue
        seen = str(versions)
        patience -= 1
        if patience <= 0 and operator.starts < 200:
            operator.kill()
            operator.start()
            patience = draw.randrange(1, 12)
    until("the operator is not ready", operator.ready)
    status = team.status()
    assert status["restarts"] == 0
    assert all(len(entry["attempts"]) == 1 for entry in status["stages"])
    assert sorted(team.children()) == sorted(f"wan-{stage}-1" for stage in STAGES)


def test_an_api_server_that_is_gone_for_longer_than_the_lease(team: Team, operator: Operator) -> None:
    """The operator cannot know whether it still leads: it ends, is started again, and goes on."""
    team.rules.hold.add("prepare")
    team.apply()
    team.runs("prepare")
    server = team.plane.processes()["kube-apiserver"].pid
    os.kill(server, signal.SIGSTOP)
    try:
        assert operator.process is not None
        assert operator.process.wait(timeout=DEADLINE) == 1
    finally:
        os.kill(server, signal.SIGCONT)
    assert "could not be renewed in time" in operator.log()
    team.rules.hold.clear()
    operator.start()
    assert team.reaches("Succeeded")["restarts"] == 0


def test_what_ends_while_the_operator_is_down_is_found_out(team: Team, operator: Operator) -> None:
    team.rules.hold.add("prepare")
    team.apply()
    team.runs("prepare")
    operator.kill()
    team.rules.hold.clear()

    def over() -> bool:
        conditions = team.children()["wan-prepare-1"].get("status", {}).get("conditions") or []
        return any(entry["type"] == "Complete" for entry in conditions)

    until("prepare does not end", over)
    operator.start()
    team.reaches("Succeeded")
    assert team.stage("prepare")["attempts"][0]["message"] == "prepare is done"


def test_a_child_deleted_while_the_operator_is_down_is_replaced(team: Team, operator: Operator) -> None:
    team.rules.hold.add("prepare")
    team.apply()
    team.runs("prepare")
    operator.kill()
    team.kubectl("delete", "job", "wan-prepare-1", "--cascade=foreground", "--timeout=30s")
    team.rules.hold.clear()
    operator.start()
    team.reaches("Succeeded")
    assert team.stage("prepare")["attempts"][0]["reason"] == "ChildDeleted"


def test_a_second_replica_stands_by_and_takes_over(team: Team, operator: Operator, tmp_path: Path) -> None:
    config = json.loads((operator.folder / "kubeconfig").read_text())
    second = Operator(tmp_path, *written(tmp_path, config), identity="kinema-operator-1")
    until("the first is not ready", operator.ready)
    second.start()
    try:
        until("the second does not stand by", second.ready)
        assert "kinema_leader 0.0" in second.metrics()
        assert "kinema_leader 1.0" in operator.metrics()
        assert operator.stop() == 0
        until("the second does not lead", lambda: "kinema_leader 1.0" in second.metrics())
        team.apply()
        team.reaches("Succeeded")
    finally:
        assert second.stop() == 0, second.log()
        operator.start()
        until("the operator is not ready", operator.ready)


def test_probes_and_metrics_of_a_healthy_operator(team: Team, operator: Operator) -> None:
    until("the operator is not ready", operator.ready)
    team.apply()
    team.reaches("Succeeded")
    assert operator.probe("/healthz") == 200
    text = operator.metrics()
    assert 'kinema_attempts_total{result="succeeded",stage="train"}' in text
    assert 'kinema_watch_age_seconds{resource="pytorchjobs"}' in text
    # Nothing that it asked for was refused by its own rules; a quota may have refused a child.
    assert not [line for line in text.splitlines() if 'code="403"' in line and 'verb="POST"' not in line]
    assert 'kinema_reconciles_total{result="bug"}' not in text


def test_the_servers_certificate_is_there(team: Team, operator: Operator) -> None:
    secret = json.loads(team.plane.kubectl("get", "secret", "kinema-server-tls", "-n", HOME, "-o", "json"))
    assert {"tls.crt", "tls.key", "ca.crt"} <= set(secret["data"])
    team.rules.hold.add("check")
    team.apply()
    team.runs("check")
    (pod,) = team.pods()
    assert "BEGIN CERTIFICATE" in pod["metadata"]["annotations"]["kinema.dev/server-ca"]
    assert "PRIVATE KEY" not in operator.log()


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        ("kinema.dev/definition-version", "0.0.1", "is older than this operator"),
        ("kinema.dev/definition-version", "99.0.0", "is newer than this operator"),
        ("kinema.dev/definition-version", None, "is of another build"),
    ],
    ids=["older", "newer", "another-build"],
)
def test_definitions_that_are_not_its_own_end_the_operator(
    team: Team, operator: Operator, annotation: str, value: str | None, says: str
) -> None:
    crd = "videotrainingjobs.kinema.dev"
    own = json.loads(team.plane.kubectl("get", "crd", crd, "-o", "json"))["metadata"]["annotations"]
    changed = [f"{annotation}={value or own[annotation]}", "kinema.dev/definition-digest=of-something-else"]
    until("the operator is not ready", operator.ready)
    operator.stop()
    before = len(operator.log())
    team.plane.kubectl("annotate", "crd", crd, "--overwrite", *changed)
    try:
        operator.start()
        assert operator.process is not None
        assert operator.process.wait(timeout=DEADLINE) == 1
    finally:
        kept = [f"{key}={own[key]}" for key in (annotation, "kinema.dev/definition-digest")]
        team.plane.kubectl("annotate", "crd", crd, "--overwrite", *kept)
    (sentence,) = [line for line in operator.log()[before:].splitlines() if f"CRD {crd}" in line]
    assert says in sentence
    assert "run `" in sentence
    operator.start()
    until("the operator is not ready", operator.ready)
    until("its own are not confirmed", lambda: "kinema_definitions_confirmed 1.0" in operator.metrics())
    team.apply()
    team.reaches("Succeeded")
