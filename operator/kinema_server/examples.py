# SPDX-License-Identifier: Apache-2.0
"""What answers look like, for the server's documentation."""

from __future__ import annotations

import json
from typing import Any

from kinema_api.names import API_VERSION, JOB_KIND

_AT = "2026-11-22T10:00:00Z"
_UID = "6f0c2c3e-4d59-4b43-9d1c-0a6b9f6f6c55"

ROW: dict[str, Any] = {
    "namespace": "team",
    "name": "wan",
    "uid": _UID,
    "model": "wan2.1-t2v-1.3b",
    "phase": "Running",
    "stage": "train",
    "progress": "42%",
    "eta": "3h12m",
    "loss": "0.1235",
    "restarts": 0,
    "message": "train runs, attempt 1",
    "createdAt": _AT,
}
LISTING = {"items": [{**ROW, "age": "2h5m"}], "next": "", "remaining": None}
_PROGRESS = {
    "stage": "train",
    "attempt": 1,
    "percent": "42%",
    "percentage": 42,
    "step": 126,
    "totalSteps": 300,
    "loss": "0.1235",
    "eta": "3h12m",
    "etaSeconds": 11520,
    "metrics": {"loss": "0.123456", "samples_per_second": "1.72"},
    "updatedAt": _AT,
}
STAGES = {
    "items": [
        {
            "name": "train",
            "state": "Running",
            "reason": "",
            "message": "",
            "counts": {},
            "failures": 0,
            "attempts": [
                {"number": 1, "child": "wan-train-1", "state": "Running", "startedAt": _AT, "runningAt": _AT},
            ],
        }
    ]
}
STANDING = {"phase": "Running", "stage": "train", "progress": _PROGRESS}
MANIFEST: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": JOB_KIND,
    "metadata": {"name": "wan"},
    "spec": {
        "model": {"name": "wan2.1-t2v-1.3b", "weights": {"uri": "pvc://models/Wan2.1-T2V-1.3B-Diffusers"}},
        "dataset": {"uri": "pvc://data/clips"},
        "storage": {"uri": "pvc://training/kinema"},
        "defaults": {"pool": "a100"},
    },
}
JOB: dict[str, Any] = {
    **MANIFEST,
    "metadata": {"name": "wan", "namespace": "team", "uid": _UID, "resourceVersion": "4711"},
    "status": {"phase": "Running", "stage": "train", "message": ROW["message"], "progress": _PROGRESS},
}
_FOLDER = "pvc://training/kinema"
ARTIFACTS = {
    "workspace": f"{_FOLDER}/jobs/team/wan-6f0c2c3e",
    "items": [
        {
            "stage": "features",
            "uri": f"{_FOLDER}/artifacts/features/9d2f61c0a4b35e78",
            "key": "9d2f61c0a4b35e78",
            "reused": True,
            "counts": {"clips": 1200, "encoded": 0},
        }
    ],
}
DIAGNOSIS = {
    "phase": "Running",
    "message": "train runs, attempt 2",
    "diagnosis": "train failed once: rank 3 ran out of memory on node gpu-7; it goes on from step 4200",
    "failures": [
        {
            "stage": "train",
            "attempt": 1,
            "reason": "OutOfMemory",
            "failure": "host-out-of-memory",
            "message": "the container was killed: it used more memory than its limit",
            "exitCode": 137,
            "node": "gpu-7",
            "finishedAt": _AT,
            "logTail": "step 4231 loss 0.1244",
        }
    ],
}
EVENTS = {
    "items": [
        {
            "type": "Normal",
            "reason": "StageStarted",
            "message": "train starts, attempt 1",
            "object": "videotrainingjob/wan",
            "count": 1,
            "lastAt": _AT,
        }
    ]
}
PLAN = {
    "accepted": True,
    "reason": "",
    "message": "",
    "stages": [
        {"stage": "check", "pool": None, "pods": 1, "devices": 0},
        {"stage": "train", "pool": "a100", "pods": 2, "devices": 8},
    ],
    "training": {
        "steps": 300,
        "processes": 16,
        "layout": {"replicate": 1, "shard": 16},
        "memory": {"total": 31457280000, "activations": 21474836480},
        "deviceMemory": 85899345920,
        "samplesPerStep": 16,
        "tflopPerStep": 13584.0,
        "stepSeconds": 6.8,
        "seconds": 2040.0,
        "pace": "assumed: 40 % of 312 TFLOP/s a device (A100)",
        "acceleratorHours": 9.07,
        "cost": 18.13,
        "pricePerHour": 32.0,
        "currency": "USD",
        "notes": ["time and cost are of training alone: encoding, export and sampling come on top"],
    },
}
POST = {
    "trainerStatus": {
        "progressPercentage": 42,
        "estimatedRemainingSeconds": 11520,
        "metrics": [{"name": "step", "value": "126"}, {"name": "loss", "value": "0.123456"}],
        "lastUpdatedTime": _AT,
    }
}
HISTORY = {"step": 300, "series": [{"name": "loss", "steps": [1, 150, 300], "values": [0.91, 0.42, 0.3]}]}
SAMPLES = {
    "items": [
        {"round": "final", "file": "00-seed1.mp4", "prompt": "a red kite over the sea", "seed": 1, "size": 1048576}
    ]
}
LOG = "step 125 loss 0.1241\nstep 126 loss 0.1235\n"
LOG_EVENTS = f'event: line\nid: {_AT}/1\ndata: step 126 loss 0.1235\n\nevent: end\ndata: {{"reason": "..."}}\n\n'
WATCH = f"event: added\ndata: {json.dumps(ROW)}\n\nevent: synced\nid: 4711\ndata: {{}}\n\n"
WATCH_JOB = f"event: added\ndata: {json.dumps(JOB)}\n\nevent: synced\nid: 4711\ndata: {{}}\n\n"
