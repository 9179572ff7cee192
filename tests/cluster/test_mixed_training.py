# SPDX-License-Identifier: Apache-2.0
"""Clips of mixed sizes, packed, over two nodes of two processes in tensor parallel x FSDP2, one of them killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from kinema_demo.install import POOLS, ROOT
from kinema_demo.kubectl import Kubectl
from kinema_demo.target import Target
from kinema_demo.workspace import inside

from kinema_api import geometry
from kinema_api.buckets import Geometry
from kinema_api.catalogue import entry
from kinema_api.names import Stage, artifact_folder
from kinema_api.status import Attempt, AttemptState

from tests.cluster.jobs import Job, Jobs
from tests.cluster.node import training_processes
from tests.cluster.outcome import about, judge
from tests.cluster.witness import Witness
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLE, POOL = ROOT / "examples" / "wan-mixed.yaml", POOLS / "cpu-pair.yaml"
STEPS, INTERVAL, MIDDLE = 60, 10, 25
NODES, PROCESSES = 2, 2
COPIES = 2
"""Data coordinates: each has a pack a step."""
PACKS = 3
"""Of an epoch: the example's clips in packs of the example's budget."""
LAYOUT = {"tensor": 2, "shard": 2}


@dataclass(frozen=True, slots=True)
class Run:
    """The job at its end, and what was seen on the way."""

    job: Job
    gang: dict[str, Any]
    """The PyTorchJob of the first attempt."""

    def clips(self) -> list[Geometry]:
        """The clips that prepare selected."""
        status = self.job.status
        assert status.resolved is not None and status.resolved.keys
        folder = artifact_folder(Stage.PREPARE, status.resolved.keys["prepare"])
        path = f"{inside(self.job.object['spec']['storage']['uri'])}/{folder}/clips.jsonl"
        lines = [json.loads(line) for line in self.job.workspace.run("cat", path).splitlines()]
        assert len({line["key"] for line in lines}) == len(lines)
        return [Geometry(line["frames"], line["height"], line["width"]) for line in lines]

    def published(self, stage: Stage) -> dict[str, int]:
        """The sizes of a stage's files by name; each is there."""
        artifact = self.job.stage(stage).artifact
        assert artifact, stage
        folder = inside(artifact)
        files: dict[str, int] = json.loads(self.job.workspace.run("cat", f"{folder}/_SUCCESS.json"))["files"]
        for name, size in files.items():
            assert self.job.workspace.run("stat", "-c", "%s", f"{folder}/{name}").strip() == str(size)
        return files


@pytest.fixture(scope="module")
def pair(kubectl: Kubectl) -> Iterator[str]:
    """The pool with two processes a node; gone afterwards, so that the cluster has the pools that other tests know."""
    pool = yaml.safe_load(POOL.read_text(encoding="utf-8"))
    kubectl.apply(pool)
    yield pool["metadata"]["name"]
    kubectl.run("delete", "tpool", pool["metadata"]["name"], "--wait=false")


@pytest.fixture(scope="module")
def run(cluster: Target, jobs: Jobs, pair: str, witness: Witness) -> Run:
    """The job, run to its end; a process of its second node is killed in mid-training."""
    train = {"steps": STEPS, "layout": LAYOUT, "checkpoint": {"everySteps": INTERVAL}}
    job = jobs.start(
        "mixed",
        root=jobs.root("mixed"),
        example=EXAMPLE,
        stages={"train": train, "sample": {"enabled": False}},
        policy={"restarts": {"backoffSeconds": 1}},
    )
    assert job.object["spec"]["defaults"] == {"pool": pair, "nodes": NODES, "devicesPerNode": PROCESSES}
    attempt = job.running(Stage.TRAIN)
    until("the log is at the middle", lambda: step(job) >= MIDDLE, seconds=240, poll=0.5)
    gang = job.kubectl.get("pytorchjob", attempt.child)
    assert gang is not None
    os.kill(victim(cluster, job, attempt), signal.SIGKILL)
    judge(job, witness, steps=STEPS)
    return Run(job, gang)


def step(job: Job) -> int:
    """The last whole line of the log of training."""
    printed = job.workspace.run("sh", "-c", f"tail -n 2 {job.folder}/metrics.jsonl 2>/dev/null || true")
    whole = [line for line in printed.splitlines(keepends=True) if line.endswith("\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def victim(cluster: Target, job: Job, attempt: Attempt) -> int:
    """A training process of the second node, by its pid on this machine."""
    (pod,) = (pod for pod in job.pods(attempt) if "-worker-" in pod["metadata"]["name"])
    found = training_processes(cluster, pod)
    assert len(found) == PROCESSES
    return found[-1]


def test_it_trains_on_two_nodes_of_two_processes(run: Run) -> None:
    spec = run.gang["spec"]
    assert spec["nprocPerNode"] == str(PROCESSES)
    assert {role: part["replicas"] for role, part in spec["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 1}
    parts = [name for name in run.published(Stage.TRAIN) if name.endswith(".distcp")]
    assert {name.partition("_0.")[0] for name in parts} == {f"__{rank}" for rank in range(NODES * PROCESSES)}


def test_clips_are_of_mixed_sizes_and_lengths(run: Run) -> None:
    clips = run.clips()
    assert {clip.frames for clip in clips} == {9, 17, 33}
    assert {(clip.height, clip.width) for clip in clips} == {(64, 96), (64, 80), (48, 112)}
    assert run.job.stage(Stage.PREPARE).counts["clips"] == run.job.stage(Stage.FEATURES).counts["clips"] == len(clips)


def test_the_kill_costs_one_restart_and_no_more_than_an_interval(run: Run, witness: Witness) -> None:
    status, train = run.job.status, run.job.stage(Stage.TRAIN)
    assert [attempt.state for attempt in train.attempts] == [AttemptState.FAILED, AttemptState.SUCCEEDED]
    assert status.restarts == 1
    assert about(witness, run.job, "^train: attempt 1 failed .*(SIGKILL|went away)")
    begun = [event for event in run.job.lines("events.jsonl") if event["event"] in ("started", "resumed")]
    assert [event["event"] for event in begun] == ["started", "resumed"]
    assert begun[1]["step"] >= INTERVAL and begun[1]["step"] % INTERVAL == 0


def test_every_clip_counts_once_an_epoch(run: Run) -> None:
    clips, records = run.clips(), run.job.lines("metrics.jsonl")
    epochs = STEPS * COPIES // PACKS
    assert run.job.stage(Stage.TRAIN).counts == {"steps": STEPS, "samples": epochs * len(clips)}
    model = entry("wan2.1-tiny")
    tokens = sum(geometry.tokens(clip, model) for clip in clips)
    # So many steps take whole epochs: here every clip was trained on as often as every other.
    seen = 0
    for number, record in enumerate(records, start=1):
        seen += record["tokens"]
        if number % PACKS == 0:
            whole = number * COPIES // PACKS
            assert (record["samples"], seen) == (whole * len(clips), whole * tokens), f"step {number}"
        assert record["padding"] == 0
    assert {event["trained"] for event in run.job.lines("events.jsonl") if event["event"] == "clips"} == {len(clips)}


def test_the_pipeline_is_exported(run: Run) -> None:
    files = run.published(Stage.EXPORT)
    assert "model_index.json" in files
    assert any(name.startswith("transformer/") and name.endswith(".safetensors") for name in files)
