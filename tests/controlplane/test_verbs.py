# SPDX-License-Identifier: Apache-2.0
"""The chart gives the operator every right that it needs and no other; what it lacks it says, and goes on with it.

A job's life is watched at a proxy, so that a right that nobody uses is found. Then each right is taken away in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from kinema_cluster.control_plane import ControlPlane, control_plane

from tests.controlplane.installation import HOME, install, kubeconfig, rules
from tests.controlplane.kubelet import Kubelet
from tests.controlplane.process import Operator, written
from tests.controlplane.team import Team, make_team
from tests.faults.proxy import Answer, Call, Fault, Proxy, failure
from tests.waiting import until

pytestmark = pytest.mark.controlplane

Raw = dict[str, Any]
Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""

ACCOUNT = f"system:serviceaccount:{HOME}:kinema-operator"
SECRET = "kinema-server-tls"
LEASE = "kinema-operator"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def right_of(call: Call) -> Right | None:
    """The right that a request needs; None for one that is about no resource."""
    kind, *parts = [part for part in call.path.split("/") if part]
    if kind not in ("api", "apis") or len(parts) < (2 if kind == "api" else 3):
        return None
    group, rest = ("", parts[1:]) if kind == "api" else (parts[0], parts[2:])
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    reads = "watch" if call.watch else "get" if len(rest) > 1 else "list"
    return group, "/".join([rest[0], *rest[2:]]), _VERBS.get(call.method, reads)


def documents() -> list[Raw]:
    """The roles that the chart gives the operator."""
    return [item for item in yaml.safe_load_all(rules()) if item and item["kind"] in ("ClusterRole", "Role")]


def given() -> set[Right]:
    """Every right that the chart gives the operator."""
    return {
        (group, resource, verb)
        for document in documents()
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@dataclass
class Scene:
    """An operator behind a proxy, and a team with jobs."""

    plane: ControlPlane
    kubelet: Kubelet
    proxy: Proxy
    operator: Operator
    teams: list[Team] = field(default_factory=list)
    since: int = 0
    """Where the log begins that counts."""

    @property
    def team(self) -> Team:
        return self.teams[-1]

    def begin(self) -> None:
        """A new namespace, and an operator that leads."""
        self.teams.append(make_team(self.plane, self.kubelet))
        if self.operator.process is None or self.operator.process.poll() is not None:
            self.operator.start()
        self.leads()
        self.since = len(self.operator.log())

    def leads(self) -> None:
        until("the operator is not ready", self.operator.ready)
        until("the operator does not lead", lambda: "kinema_leader 1.0" in self.operator.metrics())

    def restart(self) -> None:
        self.operator.stop()
        self.since = len(self.operator.log())
        self.operator.start()

    @property
    def log(self) -> str:
        return self.operator.log()[self.since :]

    def conflict_once(self, path: str) -> None:
        """The next status of a job finds that the job has changed."""
        left = [Answer(409, failure(409, "Conflict", "the object has been modified"))]

        def plan(call: Call) -> Fault | None:
            return left.pop() if left and call.method == "PATCH" and call.path.endswith(path) else None

        self.proxy.plan = plan

    def may(self, right: Right) -> bool:
        """Whether the API server lets the operator do it, by now."""
        group, resource, verb = right
        plural, _, below = resource.partition("/")
        home = plural in ("leases", "secrets")
        asked = {"group": group, "resource": plural, "subresource": below, "verb": verb}
        asked["namespace"] = HOME if home else self.team.namespace
        asked["name"] = {"leases": LEASE, "secrets": SECRET}.get(plural, "") if verb != "create" else ""
        if plural == "customresourcedefinitions":
            asked |= {"namespace": "", "name": "trainingpools.kinema.dev"}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": ACCOUNT, "resourceAttributes": asked},
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(self.plane.api.request("POST", path, review)["status"]["allowed"])

    @contextlib.contextmanager
    def without(self, right: Right) -> Iterator[None]:
        """One right is taken away, and given back at the end."""
        group, resource, verb = right
        assert self.may(right)
        less = documents()
        for rule in [rule for document in less for rule in document["rules"]]:
            if group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]:
                rule["verbs"] = [other for other in rule["verbs"] if other != verb]
        for document in less:
            document["rules"] = [rule for rule in document["rules"] if rule["verbs"]]
        self._grant(less)
        try:
            until(f"{right} is still given", lambda: not self.may(right))
            yield
        finally:
            self._grant(documents())
            until(f"{right} is not given back", lambda: self.may(right))

    def _grant(self, roles: list[Raw]) -> None:
        self.plane.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": roles}))

    def policy(self, **policy: Any) -> None:
        """Change the policy of the team's job."""
        patch = json.dumps({"spec": {"policy": policy}})
        self.team.kubectl("patch", "vtj", "wan", "--type=merge", "-p", patch)

    def delete_child(self, stage: str) -> None:
        """By hand, behind the operator's back."""
        kind = "pytorchjob" if stage == "train" else "job"
        self.team.kubectl("delete", kind, f"wan-{stage}-1", "--wait=false")

    def child_goes(self, name: str) -> None:
        """A stopped child goes when its pods have gone."""
        until(f"{name} is left", lambda: name not in self.team.children())

    def old_progress(self, *, attempt: int = 1) -> None:
        """Progress of train that was pushed long ago, by a stage whose watchdog is quick."""
        progress = {
            "stage": "train",
            "attempt": attempt,
            "percentage": 5,
            "updatedAt": "2026-01-01T00:00:00Z",
            "metrics": {"stall_limit_seconds": "0.5"},
        }
        until("train is not known to run", lambda: self.team.stage("train")["attempts"][-1].get("runningAt"))
        path = f"/apis/kinema.dev/v1alpha1/namespaces/{self.team.namespace}/videotrainingjobs/wan/status"
        body = {"status": {"progress": progress}}
        self.plane.api.request("PATCH", path, body, content_type="application/merge-patch+json")
        # The server's write is no news to the operator: it looks when something else changes.
        self.policy(restarts={"limit": 3 + attempt, "backoffSeconds": 0})

    def break_secret(self) -> None:
        """The server's certificate is damaged."""
        patch = json.dumps({"data": {"tls.crt": ""}})
        self.plane.kubectl("patch", "secret", SECRET, "-n", HOME, "--type=merge", "-p", patch)

    def asked_for(self, right: Right) -> bool:
        return any(right_of(call) == right for call in self.proxy.seen)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The plane, its pretended kubelet, the proxy and the operator's process."""
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(control_plane(name=f"verbs-{os.getpid()}", nodes=0))
        install(plane)
        kubelet = stack.enter_context(Kubelet(plane))
        proxy = stack.enter_context(Proxy(plane))
        folder = tmp_path_factory.mktemp("operator")
        ports = written(folder, kubeconfig(plane, server=proxy.server))
        made = Scene(plane, kubelet, proxy, Operator(folder, *ports))
        yield made
        if made.operator.process is not None and made.operator.process.poll() is None:
            assert made.operator.stop() == 0, made.operator.log()


@pytest.fixture
def scene(stage: Scene) -> Iterator[Scene]:
    """The operator leads, and does so again afterwards without having crashed."""
    stage.begin()
    yield stage
    assert "Traceback" not in stage.log
    assert stage.kubelet.error is None
    stage.proxy.plan = lambda call: None
    stage.team.kubectl("delete", "vtj", "--all", "--wait=false")


def test_a_jobs_life_needs_every_right_that_the_chart_gives_and_no_other(scene: Scene) -> None:
    team = scene.team
    scene.break_secret()
    scene.restart()
    scene.leads()
    scene.conflict_once("/videotrainingjobs/wan/status")
    team.rules.unready = True
    team.rules.hold |= {"prepare", "train"}
    team.apply()
    until("nobody asks why it waits", lambda: scene.asked_for(("", "events", "list")))
    team.rules.unready = False
    for stage in ("prepare", "train"):
        team.runs(stage)
        scene.delete_child(stage)
        team.runs(stage, attempt=2)
        if stage == "train":
            scene.old_progress(attempt=2)
            until("nobody reads the log", lambda: scene.asked_for(("", "pods/log", "get")))
        scene.policy(suspend=True)
        team.reaches("Suspended")
        scene.child_goes(f"wan-{stage}-2")
        team.rules.hold.remove(stage)
        scene.policy(suspend=False)
    team.reaches("Succeeded")
    scene.policy(ttlSecondsAfterFinished=0)
    until("the job is not deleted", lambda: team.job() is None)
    assert {right for right in map(right_of, scene.proxy.seen) if right is not None} == given()


Play = Callable[[Scene], None]
FIX = "let the administrator give the operator the right that it names: the chart has it"


def succeeds(scene: Scene) -> None:
    """The job goes on to its end."""
    scene.team.rules.hold.clear()
    scene.team.rules.unready = False
    scene.team.reaches("Succeeded")


def leads(scene: Scene) -> None:
    """The operator leads, sees what happens, and works."""
    scene.leads()
    scene.team.apply()
    scene.team.reaches("Succeeded")


def silent(scene: Scene) -> None:
    """Nothing more is said than in the log."""


def in_status(scene: Scene, reason: str = "Forbidden") -> None:
    """Message, diagnosis and a condition say it, and what to do."""
    team = scene.team
    until(f"the status does not say it: {team.status()}", lambda: FIX in team.status().get("diagnosis", ""))
    status = team.status()
    assert "is forbidden: User" in status["message"]
    assert status["phase"] in ("Running", "Suspended")
    if reason == "Forbidden":
        assert reason in {condition["reason"] for condition in status["conditions"]}
        assert [told for told, _ in team.told()].count(reason) == 1


def refused(scene: Scene) -> None:
    in_status(scene, "CreateRefused")
    assert "CreateRefused" in {stage["reason"] for stage in scene.team.status()["stages"]}


def by_event(scene: Scene) -> None:
    """A job that has ended keeps its status."""
    until("no Event says it", lambda: [why for reason, why in scene.team.told() if reason == "Forbidden"])
    assert scene.team.status()["phase"] == "Succeeded"


def standing_by(scene: Scene) -> None:
    """The process waits for the Lease, and says by its probe that it could not take over."""
    assert not scene.operator.ready()
    assert "kinema_leader 0.0" in scene.operator.metrics()


def not_ready(scene: Scene) -> None:
    assert not scene.operator.ready()


def unknown_movement(scene: Scene) -> None:
    """Nobody is harmed for what cannot be seen."""

    def reason() -> str:
        found = {entry["type"]: entry["reason"] for entry in scene.team.status()["conditions"]}
        return str(found["Progressing"])

    until("Progressing is not Unknown", lambda: reason() == "NoLogData")
    assert scene.team.status()["restarts"] == 0


@dataclass(frozen=True)
class Denied:
    """What happens to make the operator want a right that it lacks, who says so beside the log, and what then works."""

    play: Play
    says: Play = silent
    heals: Play = succeeds


def starts(*, prepare: Play = silent, says: Play = not_ready) -> Denied:
    """The operator is started anew."""

    def play(scene: Scene) -> None:
        scene.operator.stop()
        prepare(scene)
        scene.since = len(scene.operator.log())
        scene.operator.start()

    return Denied(play, says, leads)


def applied(**policy: Any) -> Play:
    def play(scene: Scene) -> None:
        scene.team.apply(policy={"restarts": {"limit": 3, "backoffSeconds": 0}, **policy})

    return play


def held(stage: str, then: Play) -> Play:
    """Something happens while a stage runs."""

    def play(scene: Scene) -> None:
        scene.team.rules.hold.add(stage)
        scene.team.apply()
        scene.team.runs(stage)
        then(scene)

    return play


def deleted(stage: str) -> Denied:
    return Denied(held(stage, lambda scene: scene.delete_child(stage)), in_status)


def suspended(stage: str) -> Denied:
    def gone(scene: Scene) -> None:
        scene.child_goes(f"wan-{stage}-1")
        scene.team.reaches("Suspended")
        message: str = until("no message", lambda: scene.team.status().get("message") or "")
        assert "forbidden" not in message
        scene.policy(suspend=False)
        succeeds(scene)

    return Denied(held(stage, lambda scene: scene.policy(suspend=True)), in_status, gone)


def conflicting(scene: Scene) -> None:
    scene.conflict_once("/videotrainingjobs/wan/status")
    scene.team.apply()


def unready(scene: Scene) -> None:
    scene.team.rules.unready = True
    scene.team.apply()


def job_is_gone(scene: Scene) -> None:
    until("the job is left", lambda: scene.team.job() is None)


def without_lease(scene: Scene) -> None:
    scene.plane.kubectl("delete", "lease", LEASE, "-n", HOME)


def without_secret(scene: Scene) -> None:
    scene.plane.kubectl("delete", "secret", SECRET, "-n", HOME)


KINEMA, BATCH, KUBEFLOW = "kinema.dev", "batch", "kubeflow.org"
DENIED: dict[Right, Denied] = {
    (KINEMA, "videotrainingjobs", "get"): Denied(conflicting),
    (KINEMA, "videotrainingjobs", "list"): starts(),
    (KINEMA, "videotrainingjobs", "watch"): starts(says=silent),
    (KINEMA, "videotrainingjobs", "delete"): Denied(applied(ttlSecondsAfterFinished=0), by_event, job_is_gone),
    (KINEMA, "videotrainingjobs/status", "patch"): Denied(applied()),
    (KINEMA, "trainingpools", "list"): starts(),
    (KINEMA, "trainingpools", "watch"): starts(says=silent),
    (BATCH, "jobs", "get"): deleted("prepare"),
    (BATCH, "jobs", "list"): starts(),
    (BATCH, "jobs", "watch"): starts(says=silent),
    (BATCH, "jobs", "create"): Denied(applied(), refused),
    (BATCH, "jobs", "delete"): suspended("prepare"),
    (KUBEFLOW, "pytorchjobs", "get"): deleted("train"),
    (KUBEFLOW, "pytorchjobs", "list"): starts(),
    (KUBEFLOW, "pytorchjobs", "watch"): starts(says=silent),
    (KUBEFLOW, "pytorchjobs", "create"): Denied(applied(), refused),
    (KUBEFLOW, "pytorchjobs", "delete"): suspended("train"),
    ("", "pods", "list"): Denied(applied(), in_status),
    ("", "pods/log", "get"): Denied(held("train", Scene.old_progress), unknown_movement),
    ("", "events", "list"): Denied(unready),
    ("", "events", "create"): Denied(applied(), succeeds),
    ("apiextensions.k8s.io", "customresourcedefinitions", "get"): starts(says=silent),
    ("coordination.k8s.io", "leases", "get"): starts(says=standing_by),
    ("coordination.k8s.io", "leases", "create"): starts(prepare=without_lease, says=standing_by),
    ("coordination.k8s.io", "leases", "patch"): starts(says=standing_by),
    ("", "secrets", "get"): starts(),
    ("", "secrets", "create"): starts(prepare=without_secret),
    ("", "secrets", "patch"): starts(prepare=Scene.break_secret),
}


def test_every_right_is_taken_away_once() -> None:
    assert set(DENIED) == given()


@pytest.mark.slow
@pytest.mark.parametrize("right", DENIED, ids=lambda right: "-".join(part.replace("/", "-") for part in right if part))
def test_what_the_operator_may_not_do_it_says_and_does_when_it_may(scene: Scene, right: Right) -> None:
    denied = DENIED[right]
    sentence = f'cannot {right[2]} resource "{right[1]}"'
    with scene.without(right):
        denied.play(scene)
        until(f"the log does not say: {sentence}", lambda: sentence in scene.log.replace('\\"', '"'))
        denied.says(scene)
        assert scene.operator.process is not None and scene.operator.process.poll() is None, "it has ended"
        assert scene.operator.probe("/healthz") == 200
    denied.heals(scene)


@pytest.mark.slow
def test_a_leader_that_may_no_longer_renew_gives_up_and_says_why(scene: Scene) -> None:
    """It ends, since another replica may lead; started again it waits, and does not end again."""
    with scene.without(("coordination.k8s.io", "leases", "patch")):
        assert scene.operator.process is not None
        assert scene.operator.process.wait(timeout=60) == 1
        assert 'cannot patch resource "leases"' in scene.log.replace('\\"', '"')
        scene.operator.start()
        until("it does not stand by", lambda: scene.log.count("the Lease cannot be taken") == 1)
        assert scene.operator.process.poll() is None
    leads(scene)
