# SPDX-License-Identifier: Apache-2.0
"""The resources as the real API server takes, refuses, explains and prints them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_cluster.control_plane import ControlPlane
from kinema_cluster.errors import ClusterError

pytestmark = pytest.mark.controlplane

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "unit" / "manifests" / "golden").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


def job(name: str = "wan", **parts: Any) -> dict[str, Any]:
    """A job that the API server takes, with parts of its spec replaced."""
    return {
        "apiVersion": "kinema.dev/v1alpha1",
        "kind": "VideoTrainingJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"name": "wan2.1-tiny", "weights": {"uri": "pvc://ws/weights"}},
            "dataset": {"uri": "pvc://ws/videos"},
            "storage": {"uri": "pvc://ws/kinema"},
            "defaults": {"pool": "cpu", "nodes": 2},
            **parts,
        },
    }


def pods(**parts: Any) -> dict[str, Any]:
    """A job with additions to all its pods."""
    return job(defaults={"pool": "cpu", "podTemplate": parts})


def dry_run(plane: ControlPlane, manifest: dict[str, Any]) -> str:
    return plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", text=json.dumps(manifest))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_child_manifests_are_accepted_with_strict_validation(plane: ControlPlane, path: Path) -> None:
    assert "created (server dry run)" in plane.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-f", str(path)
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_accepted_with_strict_validation(plane: ControlPlane, path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        assert "created (server dry run)" in dry_run(plane, manifest)


CLIP = {"frames": 17, "height": 64, "width": 96}
REFUSED = {
    "long name": (job(name="w" * 37), "at most 36 characters, since names of pods are made of it"),
    "dots in the name": (job(name="wan2.1"), "lower-case letters, digits and '-'"),
    "digit first": (job(name="1b"), "beginning with a letter"),
    "scheme": (job(dataset={"uri": "file:///data"}), "dataset.uri: write pvc://CLAIM/PATH"),
    "weights scheme": (
        job(model={"name": "wan2.1-tiny", "weights": {"uri": "file:///w"}}),
        "model.weights.uri: write pvc://CLAIM/PATH",
    ),
    "needed stage": (
        job(stages={"train": {"enabled": False}}),
        "train.enabled: later stages need train; remove the line",
    ),
    "sample alone": (job(stages={"export": {"enabled": False}}), "sample needs export"),
    "warm-up": (
        job(stages={"train": {"steps": 10, "schedule": {"warmupSteps": 10}}}),
        "schedule.warmupSteps must be below steps",
    ),
    "mistyped field": (job(stages={"train": {"step": 10}}), 'unknown field "spec.stages.train.step"'),
    "wrong word": (
        job(stages={"train": {"precision": "fp64"}}),
        'Unsupported value: "fp64": supported values: "bf16", "fp32"',
    ),
    "no steps": (job(stages={"train": {"steps": 0}}), "should be greater than or equal to 1"),
    "claim": (job(dataset={"uri": "pvc://Claim/videos"}), "dataset.uri: write pvc://CLAIM/PATH"),
    "path that leaves the volume": (
        job(storage={"uri": "pvc://ws/../etc"}),
        "storage.uri: the path may not contain '..'",
    ),
    "bucket": (job(dataset={"uri": "s3://B/x"}), "dataset.uri: write pvc://CLAIM/PATH or s3://BUCKET/PREFIX"),
    "empty part in a bucket": (job(dataset={"uri": "s3://bucket/a//b"}), "dataset.uri: the path may not contain '..'"),
    "repository": (
        job(model={"name": "wan2.1-tiny", "weights": {"uri": "hf://alone"}}),
        "or hf://ORGANISATION/REPOSITORY",
    ),
    "reserved variable": (
        pods(env=[{"name": "LANG", "value": "C"}, {"name": "RANK", "value": "0"}]),
        "is set by Kinema or by what it runs under; choose another name",
    ),
    "reserved variable of a stage": (
        job(stages={"train": {"podTemplate": {"env": [{"name": "PET_NNODES", "value": "9"}]}}}),
        "spec.stages.train.podTemplate.env[0]",
    ),
    "reserved label": (pods(labels={"kinema.dev/job": "mine"}), "labels: keys of kinema.dev, training.kubeflow.org"),
    "label of training-operator": (pods(labels={"training.kubeflow.org/job-role": "x"}), "belong to controllers"),
    "label of the job controller": (pods(labels={"job-name": "mine"}), "belong to controllers; choose other keys"),
    "reserved annotation": (pods(annotations={"x.kinema.dev/stage-config": "{}"}), "annotations: keys of kinema.dev"),
    "label's key": (pods(labels={"a b": "c"}), "labels: keys are [DOMAIN/]NAME with letters, digits"),
    "label's value": (pods(labels={"team": "video lab"}), "labels: values have up to 63 letters, digits"),
    "selector's value": (pods(nodeSelector={"zone": "a" * 64}), "nodeSelector: values have up to 63 letters"),
    "buckets beside a geometry": (
        job(stages={"prepare": {"video": {"width": 832, "buckets": [CLIP]}}}),
        "buckets take the place of frames, height and width: remove those",
    ),
    "bucket without a size": (
        job(stages={"prepare": {"video": {"buckets": [{"frames": 17, "height": 64}]}}}),
        "spec.stages.prepare.video.buckets[0].width: Required value",
    ),
    "too large a share": (
        job(stages={"prepare": {"video": {"buckets": [{**CLIP, "keep": 1.5}]}}}),
        "should be less than or equal to 1",
    ),
    "too many buckets": (
        job(stages={"prepare": {"video": {"buckets": [CLIP] * 65}}}),
        "must have at most 64 items",
    ),
    "packs of a fixed size": (
        job(stages={"train": {"packing": {"tokens": 1000}, "batchPerDevice": 2}}),
        "packing fills a forward pass by tokens: remove batchPerDevice",
    ),
    "packs without a size": (
        job(stages={"train": {"packing": {}}}),
        "spec.stages.train.packing.tokens: Required value",
    ),
    "axis of the layout": (
        job(stages={"train": {"layout": {"pipeline": 2}}}),
        'unknown field "spec.stages.train.layout',
    ),
    "no processes on an axis": (job(stages={"train": {"layout": {"shard": 0}}}), "greater than or equal to 1"),
    "kernel": (job(stages={"train": {"attention": "fast"}}), 'Unsupported value: "fast"'),
    "operation": (
        job(stages={"train": {"recompute": {"mode": "selective", "save": ["the attention"]}}}),
        "spec.stages.train.recompute.save[0]",
    ),
    "target of LoRA": (job(stages={"train": {"lora": {"targets": ["ffn.*"]}}}), "spec.stages.train.lora.targets[0]"),
    "preset": (job(stages={"train": {"objective": {"preset": "dfm"}}}), 'Unsupported value: "dfm"'),
    "held-out share": (
        job(stages={"train": {"validation": {"everySteps": 10, "share": 0}}}),
        "should be greater than 0",
    ),
    "mock with an address": (
        job(dataset={"format": "mock", "uri": "pvc://ws/videos"}),
        "dataset.uri: a mock lies nowhere",
    ),
    "dataset without an address": (job(dataset={"format": "csv"}), "dataset.uri: write pvc://CLAIM/PATH"),
    "no clips of a mock": (job(dataset={"format": "mock", "mock": {"clips": 0}}), "greater than or equal to 1"),
}


@pytest.mark.parametrize(("manifest", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_api_server_can_refuse_it_refuses_at_apply(
    plane: ControlPlane, manifest: dict[str, Any], words: str
) -> None:
    with pytest.raises(ClusterError) as refused:
        dry_run(plane, manifest)
    assert words in str(refused.value)


def test_additions_that_break_nothing_are_taken(plane: ControlPlane) -> None:
    taken = pods(
        labels={"team": "video", "example.com/empty": "", "not-kinema.dev.example.com/x": "y"},
        annotations={"example.com/note": "any text, of any length"},
        nodeSelector={"topology.kubernetes.io/zone": "a"},
        env=[{"name": "RANKING", "value": "1"}, {"name": "MY_RANK"}, {"name": "NCCL_DEBUG", "value": "INFO"}],
    )
    assert "created (server dry run)" in dry_run(plane, taken)


TAKEN = {
    "mock": job(dataset={"format": "mock", "mock": {"clips": 8}}),
    "buckets": job(stages={"prepare": {"video": {"fps": 8, "seed": 1, "buckets": [CLIP, {**CLIP, "frames": 1}]}}}),
    "no buckets": job(stages={"prepare": {"video": {**CLIP, "buckets": []}}}),
    "packs": job(stages={"train": {"packing": {"tokens": 1000, "cost": {"quadratic": 1e-9, "linear": 0}}}}),
    "batches of a fixed size": job(stages={"train": {"batchPerDevice": 2}}),
    "every axis": job(
        stages={
            "train": {
                "layout": {"replicate": 2, "shard": 2, "tensor": 2, "sequence": True, "ulysses": 2, "ring": 2},
                "recompute": {"mode": "selective", "save": ["attention", "aten.gelu.default"]},
                "lora": {"enabled": True, "targets": ["attn1.to_q", "ffn.net.2"]},
                "objective": {"preset": "mug-v", "masks": {"quarterHead": 0.5}},
                "validation": {"everySteps": 10, "clips": 4, "samples": {"everySteps": 20}},
            }
        }
    ),
}


@pytest.mark.parametrize("manifest", TAKEN.values(), ids=TAKEN.keys())
def test_what_stands_beside_what_is_refused_is_taken(plane: ControlPlane, manifest: dict[str, Any]) -> None:
    assert "created (server dry run)" in dry_run(plane, manifest)


def test_a_mock_stays_a_mock(plane: ControlPlane) -> None:
    plane.apply([job(name="mocked", dataset={"format": "mock"})])
    for change in ({"mock": {"clips": 9}}, {"format": "folder", "uri": "pvc://ws/videos"}):
        patch = json.dumps({"spec": {"dataset": change}})
        with pytest.raises(ClusterError, match="dataset is fixed once the job exists"):
            plane.kubectl("patch", "vtj", "mocked", "--type=merge", "-p", patch)


def test_a_job_is_fixed_but_for_its_policy(plane: ControlPlane) -> None:
    plane.apply([job(name="fixed")])
    with pytest.raises(ClusterError, match="stages is fixed once the job exists: create a new job"):
        plane.kubectl("patch", "vtj", "fixed", "--type=merge", "-p", '{"spec": {"stages": {"train": {"steps": 5}}}}')
    with pytest.raises(ClusterError, match="model is fixed"):
        plane.kubectl("patch", "vtj", "fixed", "--type=merge", "-p", '{"spec": {"model": {"name": "other"}}}')
    plane.kubectl("patch", "vtj", "fixed", "--type=merge", "-p", '{"spec": {"policy": {"restarts": {"limit": 7}}}}')
    assert plane.kubectl("get", "vtj", "fixed", "-o", "jsonpath={.spec.policy.restarts.limit}").strip() == "7"


POOL = {"apiVersion": "kinema.dev/v1alpha1", "kind": "TrainingPool", "metadata": {"name": "p"}}
REFUSED_POOLS = {
    "host network": (
        {"accelerator": "nvidia", "devicesPerNode": 8, "fabric": {"hostNetwork": True}},
        "fabric.hostNetwork needs podSecurity: privileged",
    ),
    "host paths": (
        {"accelerator": "ascend", "devicesPerNode": 8, "hostPaths": [{"name": "driver", "path": "/usr/local"}]},
        "hostPaths need podSecurity: privileged",
    ),
    "memory that is no amount": (
        {"accelerator": "nvidia", "devicesPerNode": 8, "deviceMemory": "80 gigabytes"},
        "spec.deviceMemory",
    ),
    "cpu resource": (
        {"accelerator": "cpu", "devicesPerNode": 1, "resourceName": "nvidia.com/gpu"},
        "a cpu pool has no resourceName",
    ),
}


@pytest.mark.parametrize(("spec", "words"), REFUSED_POOLS.values(), ids=REFUSED_POOLS.keys())
def test_pools_that_contradict_themselves_are_refused(plane: ControlPlane, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ClusterError) as refused:
        dry_run(plane, {**POOL, "spec": spec})
    assert words in str(refused.value)


def test_quantities_may_be_numbers(plane: ControlPlane) -> None:
    spec = {"accelerator": "cpu", "devicesPerNode": 1, "perDevice": {"cpu": 4, "memory": "16Gi"}}
    assert "created" in dry_run(plane, {**POOL, "spec": spec})


def test_explain_teaches(plane: ControlPlane) -> None:
    said = plane.kubectl("explain", "vtj.spec.stages.train")
    assert "Optimizer steps of the whole run. Default: 10000." in said
    assert "Kinema's own trainer" in plane.kubectl("explain", "vtj.spec.engine.name")


def test_columns(plane: ControlPlane) -> None:
    plane.apply([job(name="columns")])
    status = {
        "phase": "Running",
        "stage": "train",
        "restarts": 1,
        "progress": {"stage": "train", "percent": "42%", "eta": "3h12m", "loss": "0.1234"},
    }
    plane.kubectl(
        "patch", "vtj", "columns", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status})
    )
    header, row = plane.kubectl("get", "vtj", "columns").splitlines()[:2]
    assert header.split() == ["NAME", "PHASE", "STAGE", "PROGRESS", "ETA", "LOSS", "RESTARTS", "AGE"]
    assert row.split()[:7] == ["columns", "Running", "train", "42%", "3h12m", "0.1234", "1"]


def test_jobs_are_found_by_phase_and_category(plane: ControlPlane) -> None:
    plane.apply([job(name="found")])
    plane.kubectl(
        "patch", "vtj", "found", "--subresource=status", "--type=merge", "-p", '{"status": {"phase": "Failed"}}'
    )
    assert "found" in plane.kubectl("get", "vtj", "--field-selector=status.phase=Failed")
    assert "videotrainingjob.kinema.dev/found" in plane.kubectl("get", "kinema", "-o", "name")
