# SPDX-License-Identifier: Apache-2.0
"""A cluster of one job, in memory: it does what `decide` says, and lets tests end children as they like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from kinema_api.exits import Exit, Termination
from kinema_api.job import JobSpec
from kinema_api.names import LABEL_ATTEMPT, LABEL_STAGE, Stage
from kinema_api.pipeline import pipeline
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.settings import Stages
from kinema_api.status import JobStatus, Phase, StageState, StageStatus
from kinema_operator.decide import decide
from kinema_operator.observed import Child, ChildKind, Decision, Event, Observed, Platform, PodEnd, Raw
from kinema_operator.status import read_status, timestamp

JOB: Raw = {
    "apiVersion": "kinema.dev/v1alpha1",
    "kind": "VideoTrainingJob",
    "metadata": {
        "name": "wan", "namespace": "lab", "uid": "3f2a9c1e-0000-4000-8000-000000000001", "generation": 1
    },
    "spec": {
        "model": {"name": "wan2.1-tiny", "weights": {"uri": "pvc://ws/weights"}},
        "dataset": {"uri": "pvc://ws/videos"},
        "storage": {"uri": "pvc://ws/kinema"},
        "defaults": {"pool": "cpu", "nodes": 2, "devicesPerNode": 1},
        "policy": {"restarts": {"limit": 2, "backoffSeconds": 10}},
    },
}  # fmt: skip

PLATFORM = Platform(
    images={"stage": "kinema/stage:1", "wan2.1/cpu": "kinema/wan2.1:1"},
    server_url="https://kinema-server.kinema-system.svc",
    server_ca="-----BEGIN CERTIFICATE-----",
)
POOLS = {"cpu": PoolSpec(accelerator=Accelerator.CPU, devices_per_node=2)}
KEYS = {"prepare": "p1", "encoder": "e1", "features": "f1", "convert": "c1"}
START = datetime(2026, 1, 1, tzinfo=UTC)


def job(**spec: Any) -> Raw:
    """The job of the story, with parts of its spec replaced."""
    made = deepcopy(JOB)
    made["spec"].update(deepcopy(spec))
    return made


def begun(job: Raw, stage: Stage, *, pools: Mapping[str, PoolSpec] = POOLS, platform: Platform = PLATFORM) -> Raw:
    """The status of a job that has come to a stage."""
    resolved = freeze(spec=JobSpec.model_validate(job["spec"]), pools=pools, images=platform.images)
    stages = pipeline(Stages.stored(resolved.stages))
    status = JobStatus(
        phase=Phase.RUNNING,
        stage=stage,
        started_at=timestamp(START),
        stages=[StageStatus(name=name, state=StageState.SUCCEEDED) for name in stages[: stages.index(stage)]],
        resolved=resolved.model_copy(update={"keys": KEYS}),
    )
    return status.wire()


def born(manifest: Raw, *, uid: str, now: datetime) -> Child:
    """The child that a manifest asks for, just made."""
    metadata = manifest["metadata"]
    return Child(
        kind=ChildKind(manifest["kind"]),
        name=metadata["name"],
        uid=uid,
        stage=Stage(metadata["labels"][LABEL_STAGE]),
        attempt=int(metadata["labels"][LABEL_ATTEMPT]),
        created_at=now,
        finished=False,
        succeeded=False,
        deleting=False,
    )


def pod(
    *,
    code: int | None = 0,
    message: str = "",
    reason: str = "",
    live: bool = False,
    termination: Termination | None = None,
    after: float = 0,
    name: str = "pod-0",
) -> PodEnd:
    """A pod of a finished child."""
    said = termination
    if said is None and code is not None and (message or code == 0):
        said = Termination(code=code, message=message)
    return PodEnd(
        name=name,
        node="node-1",
        live=live,
        failed=code != 0,
        exit_code=code,
        reason=reason,
        message="",
        finished_at=START + timedelta(seconds=after),
        termination=said,
    )


@dataclass
class Story:
    """One job, its children and the clock."""

    job: Raw = field(default_factory=job)
    children: dict[str, Child] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    stray_pods: bool = False
    denied: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    pools: dict[str, PoolSpec] = field(default_factory=lambda: dict(POOLS))
    platform: Platform = PLATFORM
    now: datetime = START
    events: list[Event] = field(default_factory=list)
    created: list[Raw] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    def ask(self) -> Decision:
        """What `decide` says now; nothing is done."""
        observed = Observed(
            children=tuple(self.children.values()),
            foreign=self.foreign,
            stray_pods=self.stray_pods,
            denied=self.denied,
            refused=self.refused,
            pools=self.pools,
        )
        return decide(self.job, observed, self.platform, self.now)

    def step(self) -> Decision:
        """Do what `decide` says, once."""
        decision = self.ask()
        for manifest in decision.create:
            if manifest["metadata"]["name"] not in self.refused:
                self._create(manifest)
        if decision.status is not None:
            progress = decision.progress or (self.job.get("status") or {}).get("progress")
            self.job["status"] = decision.status | ({"progress": progress} if progress else {})
        for deletion in decision.delete:
            self.deleted.append(deletion.name)
            self.children.pop(deletion.name, None)
        self.events.extend(decision.events)
        return decision

    def settle(self) -> JobStatus:
        """Do what `decide` says until it has nothing more to do."""
        for _ in range(20):
            decision = self.step()
            waits = all(manifest["metadata"]["name"] in self.refused for manifest in decision.create)
            if waits and decision.status is None and not decision.delete:
                return self.status
        raise AssertionError(f"decide never rests: {decision}")

    @property
    def status(self) -> JobStatus:
        """The job's status."""
        return read_status(self.job)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def end(self, name: str, *pods: PodEnd, succeeded: bool = True) -> None:
        """A child ends."""
        self.children[name] = replace(self.children[name], finished=True, succeeded=succeeded, pods=pods)

    def succeed(self, name: str, *, artifact: str = "pvc://ws/kinema/result", **termination: Any) -> JobStatus:
        """A child ends well, and the operator follows."""
        self.end(name, pod(termination=Termination(code=0, artifact=artifact, **termination)))
        return self.settle()

    def fail(self, name: str, code: int = Exit.INTERNAL, message: str = "broken") -> JobStatus:
        """A child fails, and the operator follows."""
        self.end(name, pod(code=code, message=message), succeeded=False)
        return self.settle()

    def start(self, stage: Stage) -> JobStatus:
        """Begin with a stage: those before it are done, by children that are long gone."""
        self.job["status"] = begun(self.job, stage, pools=self.pools, platform=self.platform)
        return self.settle()

    def reach(self, stage: Stage, *, existing: Iterable[str] = ()) -> JobStatus:
        """Run the job until a stage has started."""
        status = self.settle()
        while status.stage is not stage:
            current = status.stages[[s.name for s in status.stages].index(status.stage or Stage.CHECK)]
            keys: dict[str, Any] = {}
            if current.name is Stage.CHECK:
                keys = {"keys": KEYS, "existing": list(existing)}
            status = self.succeed(current.attempts[-1].child, **keys)
        return status

    def _create(self, manifest: Raw) -> None:
        self.created.append(manifest)
        made = born(manifest, uid=f"uid-{len(self.created)}", now=self.now)
        self.children.setdefault(made.name, made)
