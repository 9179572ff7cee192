# SPDX-License-Identifier: Apache-2.0
"""A job without a volume: dataset, weights and workspace in a bucket behind a network that fails, and then here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from kinema_demo import videos
from kinema_demo.follow import KIND
from kinema_demo.kubectl import Kubectl, Object
from kinema_demo.target import Target
from kinema_demo.workspace import Shell

from kinema_api.catalogue import entry
from kinema_api.names import LABEL_JOB_UID, Stage, run_folder
from kinema_cluster.network import ADDRESS
from kinema_trainer import tiny

from tests.cluster.jobs import Job, done
from tests.s3 import job as s3
from tests.s3.bucket import ObjectStore, object_store, secret
from tests.s3.faults import FAULTS, FaultyProxy

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 12
STAGES = {
    "features": {"clipsPerShard": 1},
    "train": {"steps": STEPS, "checkpoint": {"everySteps": 4}},
    "sample": {"prompts": ["a rabbit"], "steps": 2},
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """The bucket, past the faults; and the network that fails before it."""

    store: ObjectStore
    proxy: FaultyProxy


@pytest.fixture(scope="module")
def bucket(cluster: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A store on the node itself, with the demo's videos and toy weights in it."""
    if not cluster.local:
        pytest.skip("the store runs beside the test, where only pods of the local cluster reach it")
    dataset, weights = videos.bundled(print), tmp_path_factory.mktemp("weights")
    tiny.make(weights, spec=entry("wan2.1-tiny"), videos=dataset)
    with (
        object_store(s3.BUCKET) as store,
        FaultyProxy(store.port, host=ADDRESS, share=0.05, seed=40, delay=1.5) as proxy,
    ):
        store.put(dataset, s3.VIDEOS)
        store.put(weights, s3.WEIGHTS)
        yield Bucket(store, proxy)


@pytest.fixture(scope="module")
def manifest(bucket: Bucket) -> Object:
    """The job."""
    return s3.job(bucket.proxy.url, name="wan-s3", stages=STAGES)


@pytest.fixture(scope="module")
def job(bucket: Bucket, kubectl: Kubectl, manifest: Object) -> Iterator[Job]:
    """The job, applied beside the Secret that it names."""
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": s3.SECRET}, "stringData": keys}, manifest)
    found = kubectl.get(KIND, manifest["metadata"]["name"])
    assert found is not None
    yield Job(kubectl, Shell(kubectl, "none"), found["metadata"]["name"], found["metadata"]["uid"])
    kubectl.run("delete", KIND, found["metadata"]["name"], "--ignore-not-found", "--wait=false")
    kubectl.run("delete", "secret", s3.SECRET, "--ignore-not-found")


def test_it_succeeds_without_a_volume(job: Job) -> None:
    status = job.succeeded(seconds=600)
    assert done(status.stages) == {stage.value: "Succeeded" for stage in Stage}
    assert status.restarts == 0, "5 % of calls that fail are survived by the calls themselves"
    pods = job.kubectl.list("pods", labels={LABEL_JOB_UID: job.uid})
    assert len(pods) >= len(Stage)
    volumes = [volume for pod in pods for volume in pod["spec"]["volumes"]]
    assert not [volume for volume in volumes if "persistentVolumeClaim" in volume]
    assert {volume["secret"]["secretName"] for volume in volumes if "secret" in volume} == {s3.SECRET}


def test_the_bucket_has_the_exact_last_step_and_whole_artifacts(job: Job, bucket: Bucket) -> None:
    status = job.succeeded(seconds=600)
    folder = run_folder(namespace=job.kubectl.namespace, name=job.name, uid=job.uid)
    assert status.workspace == f"s3://{s3.BUCKET}/{s3.WORKSPACE}/{folder}"
    assert job.stage(Stage.EXPORT).artifact == f"{status.workspace}/export"
    steps = [line["step"] for line in s3.lines(bucket.store, folder, "metrics.jsonl")]
    assert steps == list(range(1, STEPS + 1))
    folders = s3.published(bucket.store)
    assert {"model_index.json", "transformer/config.json"} <= set(folders[f"{folder}/export"])
    assert f"{folder}/checkpoints/step-{STEPS:08d}" in folders
    assert [name for name in folders[f"{folder}/samples"] if name.endswith(".mp4")] == ["00-seed0.mp4"]


def test_every_kind_of_fault_came_in(job: Job, bucket: Bucket) -> None:
    job.succeeded(seconds=600)
    counts = bucket.proxy.counts
    print(f"{counts.total()} calls: {dict(counts)}")
    assert all(counts[fault] > 0 for fault in FAULTS), counts


def test_the_same_file_runs_here_and_finds_what_the_cluster_made(
    job: Job, manifest: Object, bucket: Bucket, tmp_path: Path
) -> None:
    job.succeeded(seconds=600)
    before = bucket.store.sizes(f"{s3.WORKSPACE}/artifacts/")
    secret(tmp_path, s3.SECRET)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(manifest))
    command = [
        *(sys.executable, "-m", "kinema_cli", "run", "--local", str(file), "--stage", "features"),
        *("--accelerator", "cpu", "--secret", f"{s3.SECRET}={tmp_path / s3.SECRET}"),
        *("--state", str(tmp_path / "state"), "--scratch", str(tmp_path / "scratch")),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "features: done: published already" in ran.stdout
    assert bucket.store.sizes(f"{s3.WORKSPACE}/artifacts/") == before
