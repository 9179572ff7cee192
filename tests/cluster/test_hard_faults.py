# SPDX-License-Identifier: Apache-2.0
"""What a cluster may do to a job in mid-run, one small job a fault: each ends as it should, at its exact last step."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kinema_demo.install import NAMESPACE as SYSTEM
from kinema_demo.kubectl import Kubectl, Object
from kinema_demo.target import Target
from kinema_demo.workspace import inside

from kinema_api.exits import FailureClass
from kinema_api.locations import claim_of
from kinema_api.names import LABEL_JOB_UID, Stage
from kinema_api.status import Attempt, AttemptState, JobStatus, Phase
from kinema_cluster import addons, packages
from kinema_cluster.components import NODE

from tests.cluster.jobs import NO_RESULT, Job, Jobs
from tests.cluster.node import fill, kill, local, small_volume, training_process
from tests.cluster.outcome import Clock, Table, about, gone, judge
from tests.cluster.witness import Witness
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, INTERVAL, MIDDLE = 60, 10, 15
API_AWAY = 120.0
"""Seconds without an API server."""
LONG = 120
"""Steps of a job that trains through much of that time."""
STALL = 20
"""Seconds without a step that are taken for a hang."""
SAME_LOSS = 0.01
"""Relative: another number of processes adds up in another order, and other data or noise would change far more."""
HOGS = """
import os, time
for _ in range(24):
    if os.fork() == 0:
        taken = bytearray(os.urandom(1 << 20)) * 80
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
"""Many small processes: the kernel picks the largest one, which is the one that trains."""
CLOCK = Path(__file__).with_name("moved_clock.c")


@dataclass
class Cluster:
    """All that a fault needs."""

    target: Target
    kubectl: Kubectl
    jobs: Jobs
    witness: Witness
    outcomes: Table
    root: str
    losses: list[float]

    @property
    def system(self) -> Kubectl:
        """Kubectl in the namespace of the operator."""
        return self.kubectl.within(SYSTEM)

    def start(self, name: str, *, nodes: int = 1, steps: int = STEPS, root: str = "", **train: Any) -> Job:
        """A job that trains on the shared data, with two clips a step however many pods it has."""
        settings = {
            "steps": steps,
            "nodes": nodes,
            "batchPerDevice": 2 // nodes,
            "checkpoint": {"everySteps": INTERVAL},
            **train,
        }
        stages = {**NO_RESULT, "train": settings}
        policy = {"restarts": {"backoffSeconds": 1}}
        return self.jobs.start(name, root=root or self.root, stages=stages, policy=policy)

    def folder(self, job: Job) -> Path:
        """The job's folder on this machine."""
        uri = until("its folder is known", lambda: job.status.workspace, seconds=120)
        return self.path(uri)

    def path(self, uri: str) -> Path:
        """A pvc:// address on this machine."""
        claim = claim_of(uri)
        assert claim is not None
        return local(self.target).layout.root / "volumes" / self.kubectl.namespace / claim.name / claim.path

    def training(self, job: Job, *, attempt: int = 1, step: int = MIDDLE) -> Attempt:
        """Wait until an attempt is in the middle of training, and all its pods run."""
        found = job.running(Stage.TRAIN, attempt=attempt)
        self.wait_for_step(job, step)
        return found

    def wait_for_step(self, job: Job, step: int, *, seconds: float = 300) -> None:
        """Wait until the log of training has come to a step."""
        folder = self.folder(job)
        until(f"{job.name} is at step {step}", lambda: logged(folder) >= step, seconds=seconds)

    def failed(self, job: Job, *, attempt: int = 1, seconds: float = 240) -> Attempt:
        """Wait until an attempt of train is told to have failed."""

        def answer() -> Attempt | None:
            train = next((stage for stage in job.status.stages if stage.name is Stage.TRAIN), None)
            found = train.attempts if train is not None else []
            return next((a for a in found if a.number == attempt and a.state is AttemptState.FAILED), None)

        return until(f"attempt {attempt} of {job.name} has failed", answer, seconds=seconds)

    def judge(self, job: Job, *, phase: Phase = Phase.SUCCEEDED, steps: int | None = STEPS) -> JobStatus:
        """What must hold after every fault; and the last loss is that of the job which nobody disturbed."""
        folder = self.folder(job)
        status = judge(job, self.witness, phase=phase, steps=steps, log=lambda: records(folder))
        if steps == len(self.losses):
            assert records(folder)[-1]["loss"] == pytest.approx(self.losses[-1], rel=SAME_LOSS)
        return status

    def done(
        self, fault: str, job: Job, clock: Clock, *, said: str = "", attempts: list[Attempt] | None = None
    ) -> None:
        """Put the outcome into the table; then nothing of the job may stay."""
        self.outcomes.add(fault, job=job, clock=clock, said=said, attempts=attempts)
        gone(job)


def records(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a job's log."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def logged(folder: Path) -> int:
    """The last step that stands in a job's log."""
    found = records(folder)
    return int(found[-1]["step"]) if found else 0


@pytest.fixture(scope="module")
def calm(target_: Target, kubectl: Kubectl, jobs: Jobs, witness: Witness, outcomes: Table) -> Cluster:
    """The cluster, and a job that nobody disturbs: it makes the data that all others train on."""
    cluster = Cluster(target_, kubectl, jobs, witness, outcomes, jobs.root("hard"), [])
    job = cluster.start("calm")
    status = cluster.judge(job)
    assert (status.restarts, witness.diagnoses(job.uid)) == (0, [])
    cluster.losses = [record["loss"] for record in records(cluster.folder(job))]
    gone(job)
    return cluster


@pytest.fixture(scope="module")
def target_(cluster: Target) -> Target:
    """The local cluster."""
    local(cluster)
    return cluster


@pytest.fixture
def two_operators(calm: Cluster) -> Iterator[list[Object]]:
    """Two replicas of the operator, both ready."""
    system = calm.system
    system.run("scale", "deployment/kinema-operator", "--replicas=2")
    system.run("rollout", "status", "deployment/kinema-operator", "--timeout=120s", timeout=150)
    yield operators(system)
    system.run("scale", "deployment/kinema-operator", "--replicas=1")
    system.run("rollout", "status", "deployment/kinema-operator", "--timeout=120s", timeout=150)


def operators(system: Kubectl) -> list[Object]:
    return system.list("pods", labels={"app.kubernetes.io/component": "operator"})


def restarted(pods: list[Object]) -> int:
    return sum(pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods)


def test_both_operators_killed(calm: Cluster, two_operators: list[Object]) -> None:
    job = calm.start("no-operators")
    calm.training(job)
    assert len(two_operators) == 2
    clock = Clock()
    kill(calm.target, *two_operators)
    until("both are back", lambda: restarted(operators(calm.system)) >= restarted(two_operators) + 2, seconds=90)
    status = calm.judge(job)
    assert (status.restarts, calm.witness.diagnoses(job.uid)) == (0, [])
    calm.done("both replicas of the operator killed", job, clock)


def test_kubelet_restarted(calm: Cluster) -> None:
    job = calm.start("no-kubelet")
    attempt = calm.training(job)
    containers = [pod["status"]["containerStatuses"][0]["containerID"] for pod in job.pods(attempt)]
    clock = Clock()
    local(calm.target).stop("kubelet", grace=0)
    local(calm.target).start("kubelet")
    status = calm.judge(job)
    assert [pod["status"]["containerStatuses"][0]["containerID"] for pod in job.pods(attempt)] == containers
    assert (status.restarts, calm.witness.diagnoses(job.uid)) == (0, [])
    calm.done("kubelet killed and started again", job, clock)


def test_the_api_server_is_away_for_two_minutes(calm: Cluster) -> None:
    job = calm.start("no-api", steps=LONG)
    calm.training(job)
    folder = calm.folder(job)
    node = local(calm.target)
    clock = Clock()
    node.stop("kube-apiserver", grace=0)
    try:
        until("training goes on", lambda: logged(folder) > MIDDLE + INTERVAL, seconds=API_AWAY)
        until("the time is over", lambda: time.monotonic() - clock.began >= API_AWAY, seconds=API_AWAY)
    finally:
        node.start("kube-apiserver")
        until("it answers", lambda: node.health().get("API server") == "ok", seconds=60)
    status = calm.judge(job, steps=LONG)
    assert (status.restarts, calm.witness.diagnoses(job.uid)) == (0, [])
    calm.done("API server away for 2 minutes", job, clock)


@pytest.fixture
def gangs(calm: Cluster) -> Iterator[Callable[[int], None]]:
    """Scales training-operator; it is back afterwards."""
    system = calm.kubectl.within(addons.NAMESPACE)

    def scale(replicas: int) -> None:
        system.run("scale", "deployment/training-operator", f"--replicas={replicas}")
        if replicas:
            system.run("rollout", "status", "deployment/training-operator", "--timeout=120s", timeout=150)
        else:
            until("training-operator is gone", lambda: not system.list("pods"), seconds=60)

    yield scale
    scale(1)
    until("its webhook answers", lambda: local(calm.target).health().get("webhook") == "ok", seconds=60)


def test_training_operator_is_away_when_training_begins_and_when_it_ends(
    calm: Cluster, gangs: Callable[[int], None]
) -> None:
    gangs(0)
    clock = Clock()
    job = calm.start("no-gangs")
    words = "training-operator"
    until("the status says so", lambda: words in job.status.diagnosis, seconds=180)
    clock.tell()
    assert not job.kubectl.list("pytorchjobs.kubeflow.org", labels={LABEL_JOB_UID: job.uid})
    gangs(1)
    attempt = calm.training(job)
    gangs(0)
    calm.wait_for_step(job, STEPS)
    until(
        "its pods end",
        lambda: all(pod["status"]["phase"] == "Succeeded" for pod in job.pods(attempt)),
        seconds=60,
    )
    assert job.status.phase is Phase.RUNNING
    gangs(1)
    status = calm.judge(job)
    assert status.restarts == 0
    said = about(calm.witness, job, words)
    calm.done("training-operator away, when training begins and when it ends", job, clock, said=said)


def test_a_frozen_rank_is_found_and_named(calm: Cluster) -> None:
    job = calm.start("frozen", nodes=2, stallSeconds=STALL)
    attempt = calm.training(job)
    (pod,) = (pod for pod in job.pods(attempt) if "-worker-" in pod["metadata"]["name"])
    clock = Clock()
    os.kill(training_process(calm.target, pod), signal.SIGSTOP)
    failed = calm.failed(job)
    assert clock.tell() < 3 * STALL
    assert failed.failure is FailureClass.STALLED
    assert "rank 1 (stopped by a signal) gave no sign of life" in failed.message
    assert failed.stacks and calm.path(failed.stacks).exists()
    calm.judge(job)
    assert job.stage(Stage.TRAIN).failures == 1
    said = about(calm.witness, job, "rank 1 .* no sign of life")
    calm.done(f"one rank of two SIGSTOPped, stallSeconds {STALL}", job, clock, said=said)


def test_a_training_process_that_the_kernel_kills_for_memory(calm: Cluster) -> None:
    job = calm.start("memory", nodes=2, resources={"cpu": "250m", "memory": "1536Mi"})
    attempt = calm.training(job)
    (pod,) = (pod for pod in job.pods(attempt) if "-worker-" in pod["metadata"]["name"])
    # The kernel weighs size and this number; raising it needs no right.
    Path(f"/proc/{training_process(calm.target, pod)}/oom_score_adj").write_text("1000")
    clock = Clock()
    with job.kubectl.popen("exec", pod["metadata"]["name"], "--", "python", "-c", HOGS) as hogs:
        failed = calm.failed(job)
        clock.tell()
        hogs.terminate()
    assert failed.failure is FailureClass.HOST_OUT_OF_MEMORY
    calm.judge(job)
    assert job.stage(Stage.TRAIN).failures == 1
    said = about(calm.witness, job, "HostOutOfMemory.*raise")
    calm.done("memory of a container's limit taken once", job, clock, said=said)


def test_a_memory_limit_that_cannot_suffice(calm: Cluster) -> None:
    job = calm.start("little", resources={"cpu": "250m", "memory": "200Mi"}, retries=1)
    clock = Clock()
    failed = calm.failed(job)
    clock.tell()
    assert failed.failure is FailureClass.HOST_OUT_OF_MEMORY
    status = calm.judge(job, phase=Phase.FAILED, steps=None)
    assert [a.failure for a in job.stage(Stage.TRAIN).attempts] == [FailureClass.HOST_OUT_OF_MEMORY] * 2
    assert "raise" in status.diagnosis and "memory" in status.diagnosis
    calm.done("memory limit that cannot suffice, retries 1", job, clock, said=status.diagnosis)


def test_a_full_workspace(calm: Cluster) -> None:
    with small_volume(calm.target, "small", namespace=calm.kubectl.namespace, mebibytes=64) as folder:
        job = calm.start("full", root="pvc://small/run")
        calm.training(job)
        clock = Clock()
        taken = fill(folder)
        failed = calm.failed(job)
        clock.tell()
        taken.unlink()
        assert failed.failure is FailureClass.STORAGE
        calm.judge(job)
        said = about(calm.witness, job, "is full .*free space")
        calm.done("workspace full, until it is freed", job, clock, said=said)


@pytest.fixture
def uncordoned(calm: Cluster) -> Iterator[None]:
    """Whatever happens, the node takes pods again."""
    yield
    calm.kubectl.run("uncordon", NODE)


def test_a_cordoned_and_drained_node(calm: Cluster, uncordoned: None) -> None:
    job = calm.start("drained", nodes=2)
    calm.training(job)
    clock = Clock()
    calm.kubectl.run(
        "drain", NODE, f"--pod-selector={LABEL_JOB_UID}={job.uid}", "--force", "--ignore-daemonsets",
        "--delete-emptydir-data", "--timeout=90s",
    )  # fmt: skip
    until("the status says so", lambda: "uncordon" in job.status.diagnosis, seconds=120)
    clock.tell()
    calm.kubectl.run("uncordon", NODE)
    calm.judge(job)
    said = about(calm.witness, job, "uncordon")
    first, second = job.stage(Stage.TRAIN).attempts
    assert first.failure is FailureClass.INFRASTRUCTURE
    # The node may have removed the pods before anybody could read in them that they were evicted.
    assert first.reason in ("Evicted", "PodsGone")
    attempts = [first.model_copy(update={"reason": "Evicted"}), second]
    calm.done("node cordoned and drained", job, clock, said=said, attempts=attempts)


@dataclass(frozen=True, slots=True)
class Hands:
    """Moves the wall clocks of the operator and of one job's training; both begin right."""

    files: tuple[Path, Path]
    environment: dict[str, str]
    """Of the training's container."""

    def move(self, seconds: int) -> None:
        """Put them wrong by so much."""
        for path in self.files:
            with path.open("r+b") as file:
                file.write(struct.pack("=q", seconds))


def moved(folder: str) -> dict[str, str]:
    """The environment of a process whose wall clock is moved by what lies in a folder."""
    return {"LD_PRELOAD": f"{folder}/moved_clock.so", "MOVED_CLOCK": f"{folder}/moved_clock"}


@pytest.fixture
def hands(calm: Cluster, tmp_path: Path) -> Iterator[Hands]:
    """The operator with a clock that can be moved; the right operator comes back afterwards."""
    packages.ensure({"cc": "gcc", "/usr/include/stdlib.h": "libc6-dev"})
    library = tmp_path / "moved_clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, CLOCK], check=True)
    folders = local(calm.target).add_volume("clock", namespace=SYSTEM), calm.path(calm.root)
    for folder in folders:
        (folder / "moved_clock.so").write_bytes(library.read_bytes())
        (folder / "moved_clock").write_bytes(bytes(8))
    found = Hands((folders[0] / "moved_clock", folders[1] / "moved_clock"), moved(inside(calm.root)))
    env = [{"name": name, "value": value} for name, value in moved("/clock").items()]
    container = {"name": "operator", "env": env, "volumeMounts": [{"name": "clock", "mountPath": "/clock"}]}
    volumes = [{"name": "clock", "persistentVolumeClaim": {"claimName": "clock"}}]
    patch = {"spec": {"template": {"spec": {"containers": [container], "volumes": volumes}}}}
    deployment = "deployment/kinema-operator"
    calm.system.run("patch", deployment, "-p", json.dumps(patch))
    calm.system.run("rollout", "status", deployment, "--timeout=120s", timeout=150)
    yield found
    calm.system.run("rollout", "undo", deployment)
    calm.system.run("rollout", "status", deployment, "--timeout=120s", timeout=150)


def test_clocks_are_moved_by_an_hour_and_back(calm: Cluster, hands: Hands) -> None:
    env = [{"name": name, "value": value} for name, value in hands.environment.items()]
    job = calm.start("clocks", nodes=2, podTemplate={"env": env})
    attempt = calm.training(job, step=MIDDLE)
    until("progress was pushed", lambda: job.status.progress and job.status.progress.updated_at, seconds=30)
    clock = Clock()
    hands.move(3600)
    # Anything that makes the operator look, at a time when the last sign of life is an hour old for it.
    job.kubectl.run("annotate", "vtj", job.name, "kinema.dev/test=looked")
    calm.wait_for_step(job, 2 * INTERVAL + 5)
    assert job.stage(Stage.TRAIN).attempts[-1].state is AttemptState.RUNNING
    (master,) = (pod for pod in job.pods(attempt) if "-master-" in pod["metadata"]["name"])
    kill(calm.target, master)
    failed = calm.failed(job)
    clock.tell()
    assert failed.reason == "Killed"
    hands.move(0)
    # The failure lies an hour ahead now: the wait before the next attempt must not.
    calm.training(job, attempt=2, step=3 * INTERVAL)
    status = calm.judge(job)
    assert status.restarts == 1
    said = about(calm.witness, job, "attempt 1 failed")
    calm.done("clocks of operator and training moved by an hour, master killed, and moved back", job, clock, said=said)
