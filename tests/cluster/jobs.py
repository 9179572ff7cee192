# SPDX-License-Identifier: Apache-2.0
"""Jobs of the tests: made from the demo's, watched until something holds, looked into."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kinema_demo.follow import KIND
from kinema_demo.job import read
from kinema_demo.kubectl import Kubectl, Object
from kinema_demo.main import JOB
from kinema_demo.report import explain
from kinema_demo.workspace import Shell, inside

from kinema_api.names import LABEL_JOB_UID, Stage, artifact_folder
from kinema_api.pipeline import merge
from kinema_api.status import Attempt, JobStatus, Phase, StageStatus
from kinema_cluster.full import WORKSPACE

from tests.waiting import until

DATASET = f"pvc://{WORKSPACE}/demo/videos"
WEIGHTS = f"pvc://{WORKSPACE}/demo/wan2.1-tiny"
POLL = 0.25
CHILDREN = ("jobs.batch", "pytorchjobs.kubeflow.org", "pods")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A job in the cluster."""

    kubectl: Kubectl
    workspace: Shell
    name: str
    uid: str

    @property
    def object(self) -> Object:
        """As kubectl shows it."""
        found = self.kubectl.get(KIND, self.name)
        assert found is not None and found["metadata"]["uid"] == self.uid, f"vtj/{self.name} is gone"
        return found

    @property
    def status(self) -> JobStatus:
        """Its status."""
        return JobStatus.model_validate(self.object.get("status") or {})

    def stage(self, stage: Stage) -> StageStatus:
        """Where a stage stands; fails when the status does not list it."""
        return next(found for found in self.status.stages if found.name is stage)

    def until(self, what: str, test: Callable[[JobStatus], T | None], *, seconds: float = 300) -> T:
        """Wait for something in the status; a job that failed meanwhile fails the test, with its story."""

        def answer() -> T | None:
            found = self.object
            status = JobStatus.model_validate(found.get("status") or {})
            held = test(status)
            assert held or status.phase is not Phase.FAILED, explain(self.kubectl, read(found))
            return held

        return until(f"vtj/{self.name}: {what}", answer, seconds=seconds, poll=POLL)

    def succeeded(self, *, seconds: float = 600) -> JobStatus:
        """Wait for the end, which must be a good one."""
        return self.until(
            "Succeeded", lambda status: status if status.phase is Phase.SUCCEEDED else None, seconds=seconds
        )

    def ended(self, phase: Phase, *, seconds: float = 600) -> JobStatus:
        """Wait for the end, which must be this one."""
        if phase is Phase.SUCCEEDED:
            return self.succeeded(seconds=seconds)

        def answer() -> JobStatus | None:
            status = self.status
            return status if status.phase.terminal else None

        status = until(f"vtj/{self.name} ends", answer, seconds=seconds, poll=POLL)
        assert status.phase is phase, explain(self.kubectl, read(self.object))
        return status

    def running(self, stage: Stage, *, attempt: int = 1, seconds: float = 300) -> Attempt:
        """Wait until an attempt of a stage runs in a pod."""

        def runs(status: JobStatus) -> Attempt | None:
            found = next((item for item in status.stages if item.name is stage), None)
            assert found is None or not found.state.done, f"{stage} was over before it was seen running"
            return next((item for item in found.attempts if item.number == attempt), None) if found else None

        return self.until(f"attempt {attempt} of {stage} runs", runs, seconds=seconds)

    def pods(self, attempt: Attempt) -> list[Object]:
        """The pods of an attempt."""
        labels = {LABEL_JOB_UID: self.uid}
        return [
            pod
            for pod in self.kubectl.list("pods", labels=labels)
            if pod["metadata"]["name"].startswith(f"{attempt.child}-")
        ]

    def all_pods(self) -> list[Object]:
        """The pods of all attempts."""
        return self.kubectl.list("pods", labels={LABEL_JOB_UID: self.uid})

    @property
    def folder(self) -> str:
        """The job's folder, as the workspace's pod sees it."""
        workspace = self.status.workspace
        assert workspace
        return inside(workspace)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of a JSON-lines file in the job's folder."""
        text = self.workspace.run("cat", f"{self.folder}/{name}")
        return [json.loads(line) for line in text.splitlines()]

    def delete(self, *, wait: bool = True) -> None:
        """Delete it."""
        self.kubectl.run("delete", KIND, self.name, f"--wait={str(wait).lower()}")

    def children(self) -> list[str]:
        """Everything in the cluster that it owns, by label."""
        labels = {LABEL_JOB_UID: self.uid}
        return [
            f"{item['kind']}/{item['metadata']['name']}"
            for kind in CHILDREN
            for item in self.kubectl.list(kind, labels=labels)
        ]


@dataclass(slots=True)
class Jobs:
    """Makes jobs."""

    kubectl: Kubectl
    workspace: Shell
    session: str
    made: list[Job] = field(default_factory=list)

    def root(self, name: str) -> str:
        """A workspace of its own, below the one volume."""
        return f"pvc://{WORKSPACE}/tests/{self.session}/{name}"

    def start(self, name: str, *, root: str, stages: Mapping[str, Any], example: Path = JOB, **spec: Any) -> Job:
        """Apply the demo's job, or another example, under another name, with other settings."""
        base: Object = yaml.safe_load(example.read_text(encoding="utf-8"))
        base["metadata"]["name"] = name
        settings = merge(base["spec"], {"storage": {"uri": root}, "stages": stages, **spec})
        self.kubectl.apply({**base, "spec": settings})
        found = self.kubectl.get(KIND, name)
        assert found is not None
        job = Job(kubectl=self.kubectl, workspace=self.workspace, name=name, uid=found["metadata"]["uid"])
        self.made.append(job)
        return job

    def delete_all(self) -> None:
        """Delete what is left."""
        names = sorted({job.name for job in self.made})
        if names:
            self.kubectl.run("delete", KIND, *names, "--ignore-not-found", "--wait=false")


def done(statuses: Iterable[StageStatus]) -> dict[str, str]:
    """State of each stage, by name."""
    return {status.name.value: status.state.value for status in statuses}


SHORT: dict[str, Any] = {"train": {"steps": 30, "checkpoint": {"everySteps": 10}}, "sample": {"steps": 2}}
"""The whole pipeline, as short as it can be."""
NO_RESULT: dict[str, Any] = {"export": {"enabled": False}, "sample": {"enabled": False}}
"""Ends with training."""


READ_SIDECARS = """
import json, pathlib, sys
paths = sorted(pathlib.Path(sys.argv[1]).glob('shard-*.json'))
print(json.dumps([json.loads(path.read_text()) for path in paths]))
"""


def sidecars(job: Job) -> list[dict[str, Any]]:
    """What stands beside each finished shard of the job's features."""
    artifact = features_folder(job)
    found: list[dict[str, Any]] = json.loads(job.workspace.run("python", "-c", READ_SIDECARS, artifact))
    return found


def features_folder(job: Job) -> str:
    """The folder of the job's features, as the workspace's pod sees it."""
    status = job.status
    assert status.resolved is not None and status.resolved.keys
    root = inside(job.object["spec"]["storage"]["uri"])
    return f"{root}/{artifact_folder(Stage.FEATURES, status.resolved.keys['features'])}"
