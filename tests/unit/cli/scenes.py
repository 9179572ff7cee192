# SPDX-License-Identifier: Apache-2.0
"""Clusters for the pages that show what the command prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from kinema_api.crd import job_definition, pool_definition
from kinema_kube.resources import (
    CUSTOM_RESOURCE_DEFINITIONS,
    EVENTS,
    LEASES,
    PODS,
    TRAINING_POOLS,
    VIDEO_TRAINING_JOBS,
    Resource,
)

from tests.unit.cli import jobs
from tests.unit.cli.fake import FakeApi, Request, status
from tests.unit.cli.test_history import HISTORY, PROXY, SAMPLES

Raw = dict[str, Any]
NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[3]
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
WAITS = "0/6 nodes are available: 6 Insufficient nvidia.com/gpu"
_SERVER = f"{PROXY}/v1alpha1/namespaces/team/videotrainingjobs/wan"


def sound(api: FakeApi, folder: Path) -> None:
    """An installation with nothing wrong, a pool of two nodes, and some jobs."""
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.2"},
        "/apis/kubeflow.org/v1": {"resources": [{"name": "pytorchjobs"}]},
        f"{PROXY}/healthz": {},
        f"{_SERVER}/history": HISTORY,
        f"{_SERVER}/samples": SAMPLES,
        f"{_SERVER}/samples/final/000-0.mp4": b"final!",
    }
    api.hooks.append(lambda request: (200, answers[request.path]) if request.path in answers else None)
    for make in (job_definition, pool_definition):
        api.put(CUSTOM_RESOURCE_DEFINITIONS, make())
    _lease(api, NOW - timedelta(seconds=3))
    api.put(TRAINING_POOLS, {"metadata": {"name": "h100"}, "spec": jobs.POOL})
    for name in ("gpu-0", "gpu-1"):
        conditions = [{"type": "Ready", "status": "True"}]
        capacity = {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": conditions}
        api.put(NODES, {"metadata": {"name": name, "labels": dict(jobs.POOL["nodeSelector"])}, "status": capacity})
    (folder / "examples").symlink_to(ROOT / "examples")


def running(api: FakeApi, folder: Path) -> None:
    """A job that trains, one that is done, and one that waits."""
    sound(api, folder)
    job = api.put(VIDEO_TRAINING_JOBS, jobs.running())
    _gang(api, job)
    _event(api, job, "StageStarted", "train: attempt 1, registry.example.com/kinema/wan2.1:0.1.0", minutes=115)
    done = jobs.succeeded()
    done["metadata"]["name"] = "wan-cats"
    done["status"].pop("progress")
    api.put(VIDEO_TRAINING_JOBS, done)
    api.put(VIDEO_TRAINING_JOBS, _waiting())


def failing(api: FakeApi, folder: Path) -> None:
    """A job whose training failed for good."""
    sound(api, folder)
    job = api.put(VIDEO_TRAINING_JOBS, jobs.failed())
    _event(api, job, "StageStarted", "train: attempt 2, registry.example.com/kinema/wan2.1:0.1.0", minutes=90)
    _event(api, job, "AttemptFailed", f"train: {jobs.MESSAGE}", minutes=30, kind="Warning")


def broken(api: FakeApi, folder: Path) -> None:
    """An installation whose operator is stuck, whose server is gone, on nodes without device plugin."""
    sound(api, folder)
    _lease(api, NOW - timedelta(minutes=12))
    gone = status(503, "ServiceUnavailable", 'no endpoints available for service "https:kinema-server:https"')
    missing = status(404, "NotFound", "404 page not found")

    def answer(request: Request) -> Any:
        if request.path.startswith(PROXY):
            return 503, gone
        return (404, missing) if "kubeflow.org" in request.path else None

    api.hooks.insert(0, answer)
    for name in ("gpu-0", "gpu-1"):
        node = api.objects[NODES.path(name=name)]
        api.put(NODES, {**node, "status": {**node["status"], "allocatable": {}}})
    api.denied.add(("create", "videotrainingjobs"))


def submitted(api: FakeApi, folder: Path) -> None:
    """A cluster that carries out the job that is submitted."""
    sound(api, folder)

    def live() -> None:
        for state in (jobs.running(), jobs.succeeded()):
            state["metadata"]["name"] = "wan-1-3b"
            api.put(VIDEO_TRAINING_JOBS, state)

    api.on_watch.append(live)


def doomed(api: FakeApi, folder: Path) -> None:
    """A cluster in which the training of the job that is submitted fails for good."""
    sound(api, folder)

    def live() -> None:
        for state in (jobs.running(), jobs.failed()):
            state["metadata"]["name"] = "wan-1-3b"
            api.put(VIDEO_TRAINING_JOBS, state)

    api.on_watch.append(live)


def refused(api: FakeApi, folder: Path) -> None:
    """A cluster to which a job is submitted that says what no job can."""
    sound(api, folder)
    said = (
        'VideoTrainingJob.kinema.dev "wan-1-3b" is invalid: spec: Invalid value: storage.uri: write pvc://CLAIM/PATH or'
        " s3://BUCKET/PREFIX"
    )
    api.hooks.append(lambda request: (422, status(422, "Invalid", said)) if request.method == "POST" else None)
    job = yaml.safe_load((ROOT / "examples" / "wan-1.3b-nvidia.yaml").read_text())
    job["spec"]["storage"]["uri"] = "file:///data"
    (folder / "mistyped.yaml").write_text(yaml.safe_dump(job))


def large(api: FakeApi, folder: Path) -> None:
    """A job that the pool's devices cannot hold."""
    sound(api, folder)
    job = yaml.safe_load((ROOT / "examples" / "wan-1.3b-nvidia.yaml").read_text())
    job["metadata"]["name"] = "wan-14b"
    job["spec"]["model"] = {"name": "wan2.1-t2v-14b", "weights": {"uri": "pvc://models/Wan2.1-T2V-14B-Diffusers"}}
    job["spec"]["defaults"]["nodes"] = 1
    job["spec"]["stages"]["prepare"] = {"video": {"frames": 81, "height": 720, "width": 1280}}
    job["spec"]["stages"]["train"]["recompute"] = {"mode": "none"}
    (folder / "wan-14b.yaml").write_text(yaml.safe_dump(job))


SCENES: dict[str, Callable[[FakeApi, Path], None]] = {
    scene.__name__: scene for scene in (sound, running, failing, broken, submitted, doomed, refused, large)
}


def _waiting() -> Raw:
    job = jobs.running()
    job["metadata"]["name"] = "wan-dogs"
    stage = jobs.stage("features", "Running", f"waits: {WAITS}", [jobs.attempt("wan-dogs-features", state="Running")])
    job["status"].update(
        stage="features",
        stages=[*jobs.STAGES[:2], stage, *(jobs.stage(item["name"], "Pending") for item in jobs.STAGES[3:])],
        message=f"features: waits: {WAITS}",
        diagnosis=f"features waits: {WAITS}; wait until other jobs end, or ask for fewer nodes or devices",
    )
    job["status"].pop("progress")
    job["status"]["conditions"][2] = jobs.condition("Progressing", "Unknown", "NotRunning")
    return job


def _lease(api: FakeApi, renewed: datetime) -> None:
    spec = {
        "holderIdentity": "kinema-operator-7d9f8b6c5-x2x7q",
        "leaseDurationSeconds": 15,
        "renewTime": renewed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    api.put(LEASES, {"metadata": {"name": "kinema-operator", "namespace": "kinema-system"}, "spec": spec})


def _event(api: FakeApi, job: Raw, reason: str, message: str, *, minutes: int, kind: str = "Normal") -> None:
    at = (NOW - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {"name": f"{reason}-{minutes}".lower(), "namespace": "team", "creationTimestamp": at}
    about = {"uid": job["metadata"]["uid"], "name": job["metadata"]["name"]}
    api.put(EVENTS, {"metadata": metadata, "involvedObject": about, "type": kind, "reason": reason, "message": message})


def _gang(api: FakeApi, job: Raw) -> None:
    labels = {"kinema.dev/job-uid": job["metadata"]["uid"], "kinema.dev/stage": "train", "kinema.dev/attempt": "1"}
    api.put(PODS, {"metadata": {"name": "wan-train-1-master-0", "namespace": "team", "labels": labels}})
    lines: list[Raw] = [
        {"level": "info", "message": "layout: shard 32"},
        *(
            {"level": "info", "step": step, "totalSteps": 20_000, "loss": 0.12 + step % 3 / 100}
            for step in (8398, 8399)
        ),
        {"level": "warning", "message": "rank 3 on node gpu-1 is behind: its forward pass takes 1.3 times the median"},
    ]
    api.logs["team/wan-train-1-master-0"] = "".join(
        f"2026-11-22T07:59:5{index}Z {json.dumps({'time': f'2026-11-22T07:59:5{index}.000Z', **line})}\n"
        for index, line in enumerate(lines)
    )
