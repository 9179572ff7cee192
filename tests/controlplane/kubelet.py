# SPDX-License-Identifier: Apache-2.0
"""A kubelet of one node that runs nothing: pods start, and end as a test wants them to end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from kinema_api.exits import Exit, Termination
from kinema_api.names import ANNOTATION_CONFIG, CONTAINER, LABEL_ATTEMPT, LABEL_JOB_UID, LABEL_STAGE, Stage
from kinema_api.stage import TrainConfig, load_config
from kinema_cluster.control_plane import ControlPlane

Raw = dict[str, Any]

NODE = "pretended"
TICK = 0.05
HEARTBEAT = 10.0
KEYS = {"prepare": "p1", "encoder": "e1", "features": "f1", "convert": "c1"}

# The API server removes a pod that has ended without asking its kubelet.
_LIVING = f"spec.nodeName={NODE},status.phase!=Succeeded,status.phase!=Failed"
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class End:
    """How a pod ends."""

    code: int = 0
    message: str = ""
    reached: int = 0
    """Of training: the step at which it ends; what it has done since its last checkpoint is lost."""

    @property
    def phase(self) -> str:
        return "Failed" if self.code else "Succeeded"


@dataclass
class Rules:
    """What becomes of the pods of one namespace."""

    hold: set[str] = field(default_factory=set)
    """Stages whose pods run until they are no longer held."""
    linger: set[str] = field(default_factory=set)
    """Stages whose containers run on although their pods are deleted."""
    unready: bool = False
    """Pods do not even start."""
    failures: dict[str, list[End]] = field(default_factory=dict)
    """How the next attempts of a stage end; well when there is nothing left here."""


def well(stage: str, *, counts: dict[str, int] | None = None) -> End:
    """A stage that has done its work."""
    termination = Termination(
        code=Exit.OK,
        reason="Succeeded",
        message=f"{stage} is done",
        artifact=None if stage == Stage.CHECK.value else f"file:///kinema/volumes/ws/{stage}",
        keys=KEYS if stage == Stage.CHECK.value else {},
        counts=counts or {},
    )
    return End(message=termination.encode().decode())


def badly(code: Exit, message: str, *, reached: int = 0) -> End:
    """A stage that knows why it failed."""
    termination = Termination(code=int(code), reason=code.name, message=message)
    return End(code=int(code), message=termination.encode().decode(), reached=reached)


class Kubelet:
    """Pretends to run every pod that is bound to its node."""

    def __init__(self, plane: ControlPlane) -> None:
        self._api = plane.api
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self._lock = threading.Lock()
        self._rules: dict[str, Rules] = {}
        self._decided: dict[str, End] = {}
        self._beat_at = 0.0
        self.started: list[tuple[str, str, int]] = []
        """Job uid, stage and attempt of each pod that was started, in order."""
        self.overlaps: list[str] = []
        """Children of one stage whose containers ran at the same time."""
        self.checkpoints: dict[str, int] = {}
        """The step of the last checkpoint in each job's folder."""
        self.trained: dict[str, list[tuple[int, int]]] = {}
        """First and last step of each run of training, by job's uid."""
        self.on_start: Callable[[str, str, int], None] = lambda uid, stage, attempt: None
        self.error: BaseException | None = None

    def __enter__(self) -> Kubelet:
        capacity = {"cpu": "64", "memory": "256Gi", "pods": "500", "ephemeral-storage": "1Ti"}
        manifest = {"metadata": {"name": NODE}, "status": {"capacity": capacity, "allocatable": capacity}}
        self._api.request("POST", "/api/v1/nodes", manifest)
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        self._api.request("DELETE", f"/api/v1/nodes/{NODE}")

    def rules(self, namespace: str) -> Rules:
        """The rules of a namespace, to change."""
        with self._lock:
            return self._rules.setdefault(namespace, Rules())

    def attempts(self, uid: str, stage: str) -> list[int]:
        """Attempts of a stage whose containers were started."""
        return [attempt for job, found, attempt in self.started if (job, found) == (uid, stage)]

    def _run(self) -> None:
        ticks = 0
        while not self._stop.wait(TICK):
            try:
                if ticks % round(HEARTBEAT / TICK) == 0:
                    self._beat()
                self._tick()
            except OSError:
                # A pod that changed or went meanwhile is looked at again in the next tick.
                pass
            except BaseException as error:
                self.error = error
                raise
            ticks += 1

    def _beat(self) -> None:
        now = _now()
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        self._api.request(
            "PATCH", f"/api/v1/nodes/{NODE}/status", {"status": {"conditions": [ready]}}, content_type=_MERGE
        )

    def _tick(self) -> None:
        pods = self._api.get(f"/api/v1/pods?fieldSelector={quote(_LIVING)}")["items"]
        self._check(pods)
        for pod in pods:
            phase = pod["status"].get("phase")
            if pod["metadata"].get("deletionTimestamp"):
                if stage_of(pod) not in self.rules(pod["metadata"]["namespace"]).linger:
                    self._remove(pod)
            elif phase == "Pending" and not self.rules(pod["metadata"]["namespace"]).unready:
                self._start(pod)
            elif phase == "Running":
                self._end(pod)

    def _check(self, pods: list[Raw]) -> None:
        live: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for pod in pods:
            labels = pod["metadata"].get("labels") or {}
            if pod["status"].get("phase") == "Running" and LABEL_JOB_UID in labels:
                # An attempt can be made twice, so that its number does not tell them apart.
                child = (labels[LABEL_ATTEMPT], controller(pod))
                live.setdefault((labels[LABEL_JOB_UID], labels[LABEL_STAGE]), set()).add(child)
        self.overlaps += [f"{key}: {sorted(children)}" for key, children in live.items() if len(children) > 1]

    def _start(self, pod: Raw) -> None:
        labels = pod["metadata"].get("labels") or {}
        key = (labels.get(LABEL_JOB_UID, ""), labels.get(LABEL_STAGE, ""), int(labels.get(LABEL_ATTEMPT, 0)))
        now = _now()
        self._patch(
            pod,
            {
                "phase": "Running",
                "conditions": [
                    *(entry for entry in pod["status"].get("conditions") or () if entry["type"] == "PodScheduled"),
                    {"type": "Ready", "status": "True", "lastTransitionTime": now},
                ],
                "containerStatuses": [_container(pod, {"running": {"startedAt": now}}, ready=True)],
            },
        )
        self.started.append(key)
        self.on_start(*key)

    def _end(self, pod: Raw) -> None:
        namespace = pod["metadata"]["namespace"]
        stage = stage_of(pod)
        rules = self.rules(namespace)
        if stage in rules.hold:
            return
        uid = pod["metadata"]["uid"]
        if uid not in self._decided:
            waiting = rules.failures.get(stage)
            failure = waiting.pop(0) if waiting and decides(pod) else None
            if stage == Stage.TRAIN.value:
                self._decided[uid] = self._train(pod, failure)
            else:
                self._decided[uid] = failure or well(stage)
        end = self._decided[uid]
        ended = {
            "exitCode": end.code,
            "reason": "Error" if end.code else "Completed",
            "message": end.message,
            "finishedAt": _now(),
        }
        status = {
            "phase": end.phase,
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": _now()}],
            "containerStatuses": [_container(pod, {"terminated": ended}, ready=False)],
        }
        # Of a pod that is deleted meanwhile nobody but its kubelet would remove the rest: it is looked at again.
        self._patch(pod, status, version=pod["metadata"]["resourceVersion"])

    def _train(self, pod: Raw, failure: End | None) -> End:
        """Train from the last checkpoint in the folder that the pod is told of; only rank 0 writes."""
        config = load_config(pod["metadata"]["annotations"][ANNOTATION_CONFIG])
        assert isinstance(config, TrainConfig)
        steps, every = config.settings.steps, config.settings.checkpoint.every_steps
        if decides(pod):
            done = self.checkpoints.get(config.run, 0)
            reached = failure.reached if failure else steps
            self.trained.setdefault(config.job.uid, []).append((done + 1, reached))
            self.checkpoints[config.run] = max(done, reached // every * every if failure else steps)
        return failure or well(Stage.TRAIN.value, counts={"steps": steps})

    def _remove(self, pod: Raw) -> None:
        """The container has ended: only now the pod may go."""
        metadata = pod["metadata"]
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        self._api.request("DELETE", f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}", options)

    def _patch(self, pod: Raw, status: Raw, *, version: str = "") -> None:
        metadata = pod["metadata"]
        expected = {"uid": metadata["uid"], **({"resourceVersion": version} if version else {})}
        body = {"metadata": expected, "status": status}
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        self._api.request("PATCH", path, json.loads(json.dumps(body)), content_type=_MERGE)


def _container(pod: Raw, state: Raw, *, ready: bool) -> Raw:
    (container,) = [entry for entry in pod["spec"]["containers"] if entry["name"] == CONTAINER]
    return {
        "name": CONTAINER,
        "image": container["image"],
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }


def stage_of(pod: Raw) -> str:
    """The stage that a pod works at; empty when it is of nothing of ours."""
    return str((pod["metadata"].get("labels") or {}).get(LABEL_STAGE, ""))


def decides(pod: Raw) -> bool:
    """Whether a pod's end is that of its attempt: of a gang, rank 0's is."""
    return stage_of(pod) != Stage.TRAIN.value or "-master-" in pod["metadata"]["name"]


def controller(pod: Raw) -> str:
    """The uid of the child that a pod belongs to."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
