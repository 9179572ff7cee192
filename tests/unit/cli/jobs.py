# SPDX-License-Identifier: Apache-2.0
"""Jobs as the operator leaves them, for tests."""

from __future__ import annotations

import copy
from typing import Any

Raw = dict[str, Any]

SPEC: Raw = {
    "model": {"name": "wan2.1-t2v-1.3b", "weights": {"uri": "pvc://models/Wan2.1-T2V-1.3B-Diffusers"}},
    "dataset": {"uri": "pvc://datasets/cats"},
    "storage": {"uri": "pvc://training/kinema"},
    "defaults": {"pool": "h100", "nodes": 4},
    "stages": {"train": {"steps": 20_000}},
}
POOL: Raw = {
    "accelerator": "nvidia",
    "devicesPerNode": 8,
    "nodes": 16,
    "deviceMemory": "80Gi",
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "prices": {"deviceHour": 2.5, "currency": "USD"},
    "description": "8 x H100 80 GB",
}


def attempt(child: str, number: int = 1, state: str = "Succeeded", **more: Any) -> Raw:
    times = {"startedAt": "2026-11-22T06:00:00Z", "runningAt": "2026-11-22T06:00:10Z"}
    ended = {} if state == "Running" else {"finishedAt": "2026-11-22T06:05:00Z"}
    return {"number": number, "child": f"{child}-{number}", "state": state, **times, **ended, **more}


def stage(
    name: str, state: str = "Succeeded", message: str = "", attempts: list[Raw] | None = None, **more: Any
) -> Raw:
    found = attempts if attempts is not None else [attempt(f"wan-{name}")] if state != "Pending" else []
    return {"name": name, "state": state, "message": message, "attempts": found, "failures": 0, **more}


STAGES = [
    stage("check", message="4 of 4 videos have a caption; weights and workspace are in order"),
    stage("prepare", "Skipped", "pvc://training/kinema/artifacts/prepare/78d1 exists already", []),
    stage("features", message="1200 clips, 19 shards, 1200 encoded, 0 reused"),
    stage("convert", message="825 tensors, 825 verified, 1418996800 parameters"),
    stage("train", "Running", attempts=[attempt("wan-train", state="Running")]),
    stage("export", "Pending"),
    stage("sample", "Pending"),
]
PROGRESS: Raw = {
    "stage": "train",
    "attempt": 1,
    "percent": "42%",
    "percentage": 42,
    "step": 8400,
    "totalSteps": 20_000,
    "loss": "0.1234",
    "eta": "3h12m",
    "etaSeconds": 11_520,
    "metrics": {"samples_per_second": "12.8"},
    "updatedAt": "2026-11-22T06:04:55Z",
}
RESOLVED: Raw = {
    "model": {},
    "pools": {"h100": POOL},
    "images": {"train": "registry.example.com/kinema/wan2.1:0.1.0"},
    "stages": {"train": {"nodes": 4, "devicesPerNode": 8}},
}


def running() -> Raw:
    """A job whose training runs."""
    return copy.deepcopy(
        {
            "metadata": {"name": "wan", "namespace": "team", "generation": 1},
            "spec": SPEC,
            "status": {
                "observedGeneration": 1,
                "phase": "Running",
                "stage": "train",
                "message": "train: attempt 1 of at most 4 runs",
                "startedAt": "2026-11-22T06:00:00Z",
                "workspace": "pvc://training/kinema/jobs/team/wan-12345678",
                "stages": STAGES,
                "progress": PROGRESS,
                "resolved": RESOLVED,
                "conditions": [
                    condition("Accepted", "True", "Accepted"),
                    condition("Running", "True", "StageRunning", "train: attempt 1 of at most 4 runs"),
                    condition("Progressing", "True", "ProgressPushed"),
                ],
            },
        }
    )


def condition(kind: str, status: str, reason: str, message: str = "") -> Raw:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-11-22T06:00:00Z",
    }


MESSAGE = "pod wan-train-4-worker-1 on node gpu-7 used more memory than its limit; raise the stage's resources.memory"


def failed() -> Raw:
    """A job whose training failed for good."""
    job = running()
    status = job["status"]
    why = f"attempt 2 failed (HostOutOfMemory): {MESSAGE}; that was the last of 2 attempts"
    more = {"reason": "HostOutOfMemory", "message": MESSAGE, "node": "gpu-7", "exitCode": 72}
    tail = {"logTail": "loading shard 17\nloading shard 18"}
    attempts = [
        attempt("wan-train", 1, "Failed", reason="NodeLost", message="node gpu-3 is gone", node="gpu-3"),
        attempt("wan-train", 2, "Failed", **more, **tail),
    ]
    status["stages"][4] = stage("train", "Failed", why, attempts, reason="HostOutOfMemory", failures=2)
    status.update(
        phase="Failed",
        message=f"train: {why}",
        diagnosis=f"train: {why}; ask for fewer clips a device",
        restarts=2,
        finishedAt="2026-11-22T07:30:00Z",
        usage={
            "seconds": {"productive": 3000, "lost": 600, "queued": 60},
            "acceleratorHours": {"productive": "26.667", "lost": "5.333"},
        },
    )
    status["conditions"] = [
        condition("Accepted", "True", "Accepted"),
        condition("Running", "False", "HostOutOfMemory", f"train: {why}"),
        condition("Failed", "True", "HostOutOfMemory", f"train: {why}"),
    ]
    status.pop("progress")
    return job


def succeeded() -> Raw:
    """A job that is done."""
    job = running()
    done = "done; results are in pvc://training/kinema/jobs/team/wan-12345678/samples"
    told = {"train": "20000 steps", "export": "20000 step", "sample": "4 videos"}
    stages = [item if item["name"] not in told else stage(item["name"], message=told[item["name"]]) for item in STAGES]
    job["status"].update(
        phase="Succeeded", stage="sample", message=done, finishedAt="2026-11-22T09:00:00Z", stages=stages
    )
    return job
