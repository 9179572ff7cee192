# SPDX-License-Identifier: Apache-2.0
"""Kills and deletions in mid-run, of workers, masters and the operator: the job ends well, and little is done twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from kinema_demo.install import NAMESPACE
from kinema_demo.kubectl import Kubectl, Object
from kinema_demo.target import Target
from kinema_demo.workspace import Shell

from kinema_api.names import Stage
from kinema_api.status import AttemptState

from tests.cluster.jobs import NO_RESULT, Job, Jobs, features_folder, sidecars
from tests.cluster.node import kill
from tests.cluster.outcome import Clock, Table, about, gone, judge
from tests.cluster.witness import Witness
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STEPS, INTERVAL = 60, 10
# Many small shards, so that a kill finds some finished and some not.
CLIPS = {"video": {"frames": 17, "height": 64, "width": 96, "fps": 16, "clipsPerVideo": 0}}
FEATURES = {"workers": 2, "clipsPerShard": 1}
WAIT_FOR_SHARDS = """
import pathlib, sys, time
folder, wanted, end = pathlib.Path(sys.argv[1]), int(sys.argv[2]), time.monotonic() + 240
while len(list(folder.glob('shard-*.json'))) < wanted:
    assert time.monotonic() < end, f"{folder} has no {wanted} finished shards"
    time.sleep(0.02)
"""
KILLED = "^train: attempt {} failed .* was killed, exit code 137"
DELETED = "^train: attempt {} failed .* deleted from outside"
WAIT_FOR_STEP = """
import json, pathlib, sys, time
path, wanted, end = pathlib.Path(sys.argv[1]), int(sys.argv[2]), time.monotonic() + 240
def step():
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])['step'] if lines and lines[-1].endswith('}') else 0
while step() < wanted:
    assert time.monotonic() < end, f"{path} is at step {step()}"
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def story(
    cluster: Target, kubectl: Kubectl, jobs: Jobs, workspace: Shell, witness: Witness, outcomes: Table
) -> dict[str, Any]:
    """The job, run to its end through all of it, and what was seen on the way."""
    job = jobs.start(
        "faults",
        root=jobs.root("faults"),
        stages={
            **NO_RESULT,
            "prepare": CLIPS,
            "features": FEATURES,
            "train": {"steps": STEPS, "checkpoint": {"everySteps": INTERVAL}},
        },
        policy={"restarts": {"backoffSeconds": 1}},
    )
    seen: dict[str, Any] = {"job": job}
    clocks: dict[str, Clock] = {}

    attempt = job.running(Stage.FEATURES)
    victim = running_pod(job, attempt.child)
    workspace.run("python", "-c", WAIT_FOR_SHARDS, features_folder(job), "3")
    kill(cluster, victim)
    seen["finished"] = {sidecar["shard"]: sidecar for sidecar in sidecars(job)}
    seen["inodes"] = inodes(job)

    attempt = job.running(Stage.TRAIN)
    victim = running_pod(job, f"{attempt.child}-worker")
    wait_for_step(job, INTERVAL + 5)
    kill(cluster, victim)
    clocks["worker's container killed"] = Clock()

    system = kubectl.within(NAMESPACE)
    before = operator_pod(system)
    kill(cluster, before)
    clocks["operator killed, while an attempt fails"] = Clock()
    attempt = job.running(Stage.TRAIN, attempt=2)
    for clock in clocks.values():
        clock.tell()
    until("the operator is back", lambda: restarts(operator_pod(system)) > restarts(before), seconds=60)
    victim = running_pod(job, f"{attempt.child}-master")
    wait_for_step(job, 2 * INTERVAL + 5)
    kill(cluster, victim)
    clocks["master's container killed"] = Clock()

    attempt = job.running(Stage.TRAIN, attempt=3)
    clocks["master's container killed"].tell()
    running_pod(job, f"{attempt.child}-master")
    wait_for_step(job, 3 * INTERVAL + 5)
    job.kubectl.run("delete", "pytorchjob", attempt.child, "--wait=false")
    clocks["child deleted by hand"] = Clock()
    job.running(Stage.TRAIN, attempt=4)
    clocks["child deleted by hand"].tell()

    judge(job, witness, steps=STEPS)
    attempts = job.stage(Stage.TRAIN).attempts
    for number, (fault, words) in enumerate(
        (
            ("worker's container killed", KILLED),
            ("master's container killed", KILLED),
            ("child deleted by hand", DELETED),
        )
    ):
        said = about(witness, job, words.format(number + 1))
        outcomes.add(fault, job=job, clock=clocks[fault], said=said, attempts=[attempts[number], attempts[-1]])
    fault = "operator killed, while an attempt fails"
    said = about(witness, job, KILLED.format(1))
    outcomes.add(fault, job=job, clock=clocks[fault], said=said, attempts=[attempts[0], attempts[-1]])
    return seen


def wait_for_step(job: Job, step: int) -> None:
    job.workspace.run("python", "-c", WAIT_FOR_STEP, f"{job.folder}/metrics.jsonl", str(step))


def running_pod(job: Job, prefix: str) -> Object:
    """A pod of the job whose container runs."""

    def found() -> Object | None:
        for pod in job.kubectl.list("pods", labels={"kinema.dev/job-uid": job.uid}):
            states = pod["status"].get("containerStatuses") or []
            if pod["metadata"]["name"].startswith(prefix) and states and "running" in states[0]["state"]:
                return pod
        return None

    return until(f"a pod {prefix}* runs", found, seconds=240)


def operator_pod(system: Kubectl) -> Object:
    pods = system.list("pods", labels={"app.kubernetes.io/component": "operator"})
    assert len(pods) == 1
    return pods[0]


def restarts(pod: Object) -> int:
    count: int = pod["status"]["containerStatuses"][0]["restartCount"]
    return count


def inodes(job: Job) -> dict[str, str]:
    """Inode and time of change of every shard: the same file stays the same."""
    printed = job.workspace.run("sh", "-c", f"cd {features_folder(job)} && stat -c '%n %i %y' shard-*.tar")
    return dict(line.split(" ", 1) for line in printed.splitlines())


def test_no_finished_shard_is_encoded_twice(story: dict[str, Any]) -> None:
    job: Job = story["job"]
    features = job.stage(Stage.FEATURES)
    assert [attempt.state for attempt in features.attempts] == [AttemptState.FAILED, AttemptState.SUCCEEDED]
    after = {sidecar["shard"]: sidecar for sidecar in sidecars(job)}
    assert 3 <= len(story["finished"]) < len(after), "the kill came in the middle"
    for shard, sidecar in story["finished"].items():
        assert after[shard] == sidecar
        assert inodes(job)[shard] == story["inodes"][shard]
    encoded = Counter(key for sidecar in after.values() for key in sidecar["encoded"])
    assert set(encoded.values()) == {1}
    assert len(encoded) == features.counts["clips"] == len(after)


def test_training_ends_at_its_last_step_with_little_done_again(story: dict[str, Any]) -> None:
    job: Job = story["job"]
    train = job.stage(Stage.TRAIN)
    states = [attempt.state for attempt in train.attempts]
    assert states == [*[AttemptState.FAILED] * 3, AttemptState.SUCCEEDED]
    assert train.counts["steps"] == STEPS
    steps = [line["step"] for line in job.lines("metrics.jsonl")]
    assert steps == list(range(1, STEPS + 1)), "every step once, in order"
    resumed = [event for event in job.lines("events.jsonl") if event["event"] == "resumed"]
    assert len(resumed) == 3
    assert all(event["step"] >= INTERVAL for event in resumed)
    assert sum(event["repeats"] for event in resumed) <= 3 * INTERVAL


def test_the_restarts_are_told(story: dict[str, Any]) -> None:
    job: Job = story["job"]
    assert job.status.restarts == 4
    row = job.kubectl.run("get", "vtj", job.name, "--no-headers").split()
    assert row[1] == "Succeeded"
    assert "4" in row
    failed = [item for item in job.stage(Stage.TRAIN).attempts if item.state is AttemptState.FAILED]
    assert all(item.reason and item.message for item in failed)
    events = job.kubectl.run("get", "events", "--field-selector", f"involvedObject.uid={job.uid},type=Warning")
    assert events.count("AttemptFailed") == 4


def test_nothing_of_it_is_left_behind(story: dict[str, Any]) -> None:
    gone(story["job"])
