# SPDX-License-Identifier: Apache-2.0
"""Golden manifests: rendered from the builders, each line with its source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.plan import freeze
from kinema_api.pool import PoolSpec
from kinema_api.stage import JobRef
from kinema_operator.manifests import AttemptPlan, child
from kinema_operator.observed import Platform, Raw

HERE = Path(__file__).parent
FOLDER = HERE / "golden"
EXAMPLES = HERE.parents[2] / "examples" / "pools"
POOLS = {"nvidia-8gpu": "nvidia", "ascend-8npu": "ascend", "cpu": "cpu"}
STAGES = (Stage.FEATURES, Stage.TRAIN)

IMAGES = {
    "stage": "registry.example.com/kinema/stage:0.1.0",
    "wan2.1/nvidia": "registry.example.com/kinema/wan2.1:0.1.0",
    "wan2.1/cpu": "registry.example.com/kinema/wan2.1:0.1.0",
    "wan2.1/ascend": "registry.example.com/kinema/wan2.1-ascend:0.1.0",
}
PLATFORM = Platform(
    images=IMAGES, server_url="https://kinema-server.kinema-system.svc", server_ca="-----BEGIN CERTIFICATE-----"
)


def pool(name: str) -> PoolSpec:
    """A pool of the examples."""
    return PoolSpec.model_validate(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())["spec"])


def manifest(pool_name: str, stage: Stage) -> Raw:
    """The child that trains Wan 2.1 1.3B on two nodes of a pool, or encodes for it."""
    spec = {
        "model": {"name": "wan2.1-t2v-1.3b", "weights": {"uri": "pvc://models/Wan2.1-T2V-1.3B-Diffusers"}},
        "dataset": {"uri": "pvc://datasets/videos"},
        "storage": {"uri": "pvc://training/kinema"},
        "defaults": {"pool": pool_name, "nodes": 2},
        "stages": {"features": {"workers": 4}},
    }
    return built(spec, stage=stage)


def built(
    written: Raw, *, stage: Stage, avoid: tuple[str, ...] = (), pools: Mapping[str, PoolSpec] | None = None
) -> Raw:
    """The child of a stage of a job that is written as a user writes it."""
    spec = JobSpec.model_validate(written)
    resolved = freeze(spec=spec, pools=pools or {name: pool(name) for name in POOLS}, images=IMAGES)
    return child(
        AttemptPlan(
            job=JobRef(namespace="default", name="wan", uid="3f2a9c1e-0000-4000-8000-000000000001"),
            spec=spec,
            resolved=resolved,
            keys=Keys(prepare="a1", encoder="b2", features="c3", convert="d4"),
            stage=stage,
            number=1,
            platform=PLATFORM,
            avoid=avoid,
        )
    )


OBJECT_STORE: Raw = {
    "model": {
        "name": "wan2.1-t2v-1.3b",
        "weights": {"uri": "hf://Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "secretRef": {"name": "hub"}},
    },
    "dataset": {"uri": "s3://data/clips", "secretRef": {"name": "minio"}},
    "storage": {
        "uri": "s3://training/kinema",
        "endpoint": "https://minio.storage.svc:9000",
        "secretRef": {"name": "minio"},
    },
    "defaults": {
        "pool": "nvidia-8gpu",
        "nodes": 2,
        "serviceAccountName": "trainer",
        "imagePullSecrets": ["registry"],
        "podTemplate": {
            "labels": {"team": "video", "cost-center": "42"},
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"key": "reserved", "operator": "Equal", "value": "video", "effect": "NoSchedule"}],
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"}, {"name": "LOG_LEVEL", "value": "info"}],
            "scratch": "200Gi",
        },
    },
    "stages": {
        "train": {
            "resources": {"cpu": "96", "memory": "800Gi"},
            "podTemplate": {
                "labels": {"cost-center": "43"},
                "annotations": {"example.com/owner": "ada"},
                "affinity": {
                    "nodeAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [
                            {
                                "weight": 10,
                                "preference": {
                                    "matchExpressions": [{"key": "rack", "operator": "In", "values": ["r1"]}]
                                },
                            }
                        ]
                    }
                },
                "priorityClassName": "research",
                "env": [{"name": "LOG_LEVEL", "value": "debug"}],
                "terminationGracePeriodSeconds": 600,
            },
        }
    },
}
"""A job whose data lies in object storage, with all that a user may add to pods."""


def object_store() -> Raw:
    """The training gang of that job, after one node has failed too often."""
    return built(OBJECT_STORE, stage=Stage.TRAIN, avoid=("node-7",))


def render(data: Raw) -> str:
    """YAML with a source behind each line.

    Raises:
        LookupError: a line has no source in sources.yaml.
    """
    patterns = [(re.compile(path), source) for path, source in yaml.safe_load((HERE / "sources.yaml").read_text())]
    lines = []
    dash = ""
    for path, text in _lines(data, "", 0):
        if text.strip() == "-":
            dash = f"{text} "
            continue
        text, dash = (f"{dash}{text.lstrip()}", "") if dash else (text, "")
        source = next((source for pattern, source in patterns if path and pattern.search(path)), None)
        if path and source is None:
            raise LookupError(f"{path}: add its source to {HERE / 'sources.yaml'}")
        lines.append(f"{text}  # {source}" if source else text)
    header = "# Generated: UPDATE_GOLDEN=1 pytest tests/unit/manifests. Each line's source stands behind it.\n"
    return header + "\n".join(lines) + "\n"


def _lines(data: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """(path of a leaf or "", line) for each line of block-style YAML."""
    indent = "  " * depth
    for key, value, mark in _entries(data, path):
        if isinstance(value, dict | list) and value:
            yield "", f"{indent}{mark.rstrip()}"
            yield from _lines(value, key, depth + 1)
        else:
            yield key, f"{indent}{mark}{_scalar(value)}"


def _entries(data: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield f"{path}.{key}".lstrip("."), value, f"{_scalar(key)}: "
        return
    for index, value in enumerate(data):
        name = value.get("name") if isinstance(value, dict) and path.split(".")[-1] != "containers" else None
        yield f"{path}.{name}" if name else f"{path}[{index}]", value, "- "


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
