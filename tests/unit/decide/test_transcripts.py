# SPDX-License-Identifier: Apache-2.0
"""Whole lives of jobs, compared line by line with what was decided about them before."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kinema_api.exits import Exit, Termination
from kinema_api.names import Stage
from kinema_api.pool import Accelerator, PoolSpec
from kinema_operator.observed import PodEnd

from tests.unit.decide.story import PLATFORM, START, begun, job, pod
from tests.unit.decide.transcript import Told

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parent / "golden"
GPUS = PoolSpec(accelerator=Accelerator.NVIDIA, devices_per_node=8, nodes=4)
GPU_JOB: dict[str, Any] = {"defaults": {"pool": "h100", "nodes": 2, "devicesPerNode": 4}}
FOLDER_IN_POD = "file:///kinema/volumes/ws/kinema"


def gpu_told(**spec: Any) -> Told:
    images = {**PLATFORM.images, "wan2.1/nvidia": "kinema/wan2.1-nvidia:1"}
    return Told(job=job(**{**GPU_JOB, **spec}), pools={"h100": GPUS}, platform=replace(PLATFORM, images=images))


def at(stage: Stage, **spec: Any) -> Told:
    """A story whose lines begin when a stage has started."""
    told = Told(job=job(**spec))
    told.start(stage)
    told.lines.clear()
    told.say(f"{stage} has started")
    return told


def done(**left: Any) -> PodEnd:
    return pod(termination=Termination(code=0, **left))


def began(end: PodEnd, seconds: float) -> PodEnd:
    return replace(end, started_at=START + timedelta(seconds=seconds))


def whole_on_accelerators() -> Told:
    told = gpu_told(stages={"features": {"workers": 3}})
    told.settle()
    told.wait(30)
    told.succeed(
        "wan-check-1",
        keys={"prepare": "p1", "encoder": "e1", "features": "f1", "convert": "c1"},
        pins={"weights": "0f1e"},
        message=f"4 videos in {FOLDER_IN_POD}",
    )
    told.wait(60)
    folder = f"{FOLDER_IN_POD}/artifacts/prepare/p1"
    told.succeed("wan-prepare-1", artifact=folder, message=f"4 clips in {folder}", counts={"clips": 4})
    told.wait(600)
    first = replace(done(artifact="f", seconds={"starting": 30, "productive": 500}), started_at=told.now)
    told.wait(540)
    told.end("wan-features-1", first, replace(first, name="pod-1", started_at=None))
    told.settle()
    told.wait(20)
    told.succeed("wan-convert-1", reason="ArtifactExists", message="another job made it")
    told.push(stage="convert", attempt=1, percent="100%", loss="0.5")
    told.wait(120)
    told.change("wan-train-1", running=True)
    told.wait(3600)
    told.push(stage="train", attempt=1, percent="100%", percentage=100, loss="0.1", updatedAt="2026-01-01T01:00:00Z")
    seconds = {"starting": 100, "productive": 3000, "data": 200, "checkpoint": 50}
    told.succeed("wan-train-1", artifact=f"{FOLDER_IN_POD}/jobs/x", counts={"steps": 300}, seconds=seconds)
    told.wait(45)
    told.succeed("wan-export-1", reason="ArtifactExists")
    told.wait(15)
    told.end("wan-sample-1", pod(code=0, termination=Termination(code=0, message="4 clips")), pod(name="pod-1"))
    told.settle()
    return told


def artifacts_that_exist() -> Told:
    told = Told()
    told.reach(Stage.TRAIN, existing=["convert", "train"])
    return told


def all_artifacts_exist() -> Told:
    told = Told()
    told.reach(Stage.TRAIN, existing=["convert", "features", "prepare"])
    return told


def optional_stages_left_out() -> Told:
    told = Told(job=job(stages={"export": {"enabled": False}, "sample": {"enabled": False}}))
    told.start(Stage.TRAIN)
    told.lines.clear()
    told.end("wan-train-1", pod(code=0, termination=Termination(code=0)))
    told.settle()
    return told


def failures_up_to_the_limit() -> Told:
    told = at(Stage.TRAIN)
    told.push(stage="train", attempt=1, percent="40%", loss="0.2", updatedAt="2026-01-01T00:01:00Z")
    told.wait(70)
    told.fail("wan-train-1", code=Exit.COMMUNICATION, message="peer closed")
    told.wait(9)
    told.settle()
    told.wait(1)
    told.settle()
    stacks = f"{FOLDER_IN_POD}/jobs/stacks.txt"
    hung = Termination(
        code=71, message=f"no step; see {stacks}.", log_tail=f"cd {FOLDER_IN_POD}\nstep 4", stacks=stacks
    )
    hung = hung.model_copy(update={"seconds": {"productive": 60, "data": 5}})
    told.wait(90)
    told.end("wan-train-2", began(pod(code=71, termination=hung), 100), succeeded=False)
    told.settle()
    told.wait(20)
    told.settle()
    told.end("wan-train-3", pod(code=137), succeeded=False)
    told.settle()
    told.wait(100)
    told.edit(retry={"number": 1})
    told.wait(5)
    told.fail("wan-train-4", code=Exit.NUMERICS, message="loss is nan")
    return told


def retries_of_a_stage() -> Told:
    told = at(Stage.TRAIN, stages={"train": {"retries": 1}}, policy={"restarts": {"limit": 9, "backoffSeconds": 200}})
    told.fail("wan-train-1")
    told.wait(200)
    told.settle()
    told.fail("wan-train-2")
    return told


def nodes_that_fail() -> Told:
    told = at(Stage.PREPARE, policy={"restarts": {"limit": 9, "backoffSeconds": 0}})
    for number, node in enumerate(["node-b", "node-a", "node-b", "", "", "node-a", "node-c"], start=1):
        ended = replace(pod(code=None, reason="NodeLost"), node=node, finished_at=None)
        told.end(f"wan-prepare-{number}", ended, succeeded=False)
        told.settle()
    return told


def a_check_without_keys() -> Told:
    told = Told()
    told.settle()
    told.wait(30)
    some = Termination(code=0, keys={"prepare": "p1"}, seconds={"productive": 10})
    told.end("wan-check-1", began(pod(termination=some), 10))
    told.settle()
    told.wait(10)
    told.settle()
    told.end("wan-check-2", pod(code=0, termination=Termination(code=1)))
    told.settle()
    return told


def a_child_deleted_from_outside() -> Told:
    told = at(Stage.TRAIN)
    told.wait(5)
    told.change("wan-train-1", running=True)
    told.wait(60)
    told.push(stage="train", attempt=1, metrics={"seconds_productive": "40", "seconds_saved": "30"}, updatedAt="x")
    told.lose("wan-train-1")
    told.settle()
    told.wait(10)
    told.stray_pods = True
    told.say("pods of it still run")
    told.settle()
    told.stray_pods = False
    told.say("no pod of it runs")
    told.settle()
    told.change("wan-train-2", uid="another")
    return told


def pods_that_do_not_end() -> Told:
    told = at(Stage.TRAIN)
    alive = replace(pod(code=None, live=True, name="pod-1"), failed=False)
    told.end("wan-train-1", pod(code=137), alive, succeeded=False)
    told.settle()
    told.end("wan-train-1", pod(code=137), replace(alive, node=""), succeeded=False)
    told.settle()
    told.edit(suspend=True)
    told.end("wan-train-1", pod(code=137), succeeded=False)
    told.settle()
    told.edit(suspend=False)
    return told


def a_straggler_and_a_cancel() -> Told:
    told = at(Stage.TRAIN)
    told.wait(60)
    alive = pod(code=None, live=True, name="pod-1")
    told.end("wan-train-1", began(pod(code=137), 20), began(alive, 25), succeeded=False)
    told.settle()
    told.edit(cancel=True)
    return told


def a_child_that_is_being_deleted() -> Told:
    told = at(Stage.TRAIN, stages={"train": {"timeoutSeconds": 5}})
    told.change("wan-train-1", running=True)
    told.wait(60)
    told.change("wan-train-1", deleting=True)
    told.lose("wan-train-1")
    told.settle()
    told.wait(10)
    told.add("wan-train-2", Stage.TRAIN, 2, deleting=True)
    told.settle()
    told.change("wan-train-2", deleting=False)
    return told


def names_that_others_hold() -> Told:
    told = Told(foreign=frozenset({"wan-check-1"}))
    told.settle()
    told.foreign = frozenset()
    told.say("the name is free")
    told.refused = {"wan-check-1": "Job wan-check-1 cannot be created: exceeded quota: lab"}
    told.settle()
    told.wait(60)
    told.refused = {}
    told.say("the API server takes it")
    told.settle()
    return told


def room_that_is_waited_for() -> Told:
    told = at(Stage.TRAIN)
    told.change("wan-train-1", waiting="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    told.wait(100)
    told.change("wan-train-1", waiting="", running=True)
    return told


def suspended_and_resumed() -> Told:
    told = Told(job=job(policy={"suspend": True}))
    told.settle()
    told.wait(50)
    told.edit(suspend=False)
    told.succeed("wan-check-1", keys={"prepare": "p1", "encoder": "e1", "features": "f1", "convert": "c1"})
    told.wait(10)
    told.edit(suspend=True)
    told.wait(25)
    told.settle()
    told.edit(suspend=False)
    told.wait(5)
    told.end("wan-prepare-2", done(artifact="a"))
    told.edit(suspend=True)
    told.wait(3)
    told.edit(cancel=True)
    return told


def cancelled() -> Told:
    told = at(Stage.TRAIN)
    told.wait(10)
    told.change("wan-train-1", running=True)
    told.wait(30)
    told.edit(cancel=True)
    told.wait(30)
    told.edit(cancel=False, retry={"number": 3, "stage": "check"})
    return told


def the_deadline() -> Told:
    told = at(Stage.TRAIN, policy={"deadlineSeconds": 100, "restarts": {"limit": 2, "backoffSeconds": 30}})
    told.wait(40)
    told.change("wan-train-1", running=True)
    told.edit(suspend=True)
    told.wait(500)
    told.settle()
    told.edit(suspend=False)
    told.wait(59)
    told.settle()
    told.wait(1)
    told.settle()
    told.edit(deadlineSeconds=200, retry={"number": 1})
    told.wait(40)
    told.fail("wan-train-3")
    told.wait(15)
    told.edit(deadlineSeconds=50)
    told.edit(retry={"number": 2})
    told.wait(50)
    told.settle()
    return told


def failed_by_itself_at_the_deadline() -> Told:
    told = at(Stage.TRAIN, policy={"deadlineSeconds": 100})
    told.wait(100)
    told.fail("wan-train-1", code=Exit.NUMERICS, message="loss is nan")
    return told


def a_right_that_the_operator_lacks() -> Told:
    told = at(Stage.TRAIN)
    told.denied = 'pods is forbidden: User "kinema" cannot list resource "pods"'
    told.say("the operator may not list pods")
    told.settle()
    told.edit(cancel=True)
    return told


def a_timeout() -> Told:
    told = at(Stage.TRAIN, stages={"train": {"timeoutSeconds": 50}}, policy={"deadlineSeconds": 9000})
    told.wait(500)
    told.change("wan-train-1", running=True)
    told.wait(49)
    told.settle()
    told.wait(1)
    told.settle()
    return told


def a_stall() -> Told:
    told = at(Stage.TRAIN, stages={"train": {"stallSeconds": 60}})
    told.wait(10)
    told.change("wan-train-1", running=True)
    told.push(stage="train", attempt=1, metrics={"seconds_starting": "10"}, updatedAt="2026-01-01T00:00:20Z")
    told.wait(30)
    told.settle()
    told.wait(100)
    told.settle()
    told.change("wan-train-1", last_log=START + timedelta(seconds=130))
    told.wait(109)
    told.settle()
    told.wait(1)
    told.settle()
    return told


def a_stall_by_the_limit_that_the_stage_found() -> Told:
    told = at(Stage.TRAIN)
    told.change("wan-train-1", running=True, last_log=START)
    limit = {"stall_limit_seconds": "40"}
    told.push(stage="train", attempt=1, metrics=limit, updatedAt="2026-01-01T00:00:00Z")
    told.wait(79)
    told.settle()
    told.wait(1)
    told.settle()
    return told


def stages_that_say_nothing() -> Told:
    told = Told()
    told.job["status"] = begun(told.job, Stage.EXPORT)
    told.step()
    told.end("wan-export-1", replace(pod(), termination=None))
    told.settle()
    told.end("wan-sample-1")
    told.settle()
    return told


def progress_of_others() -> Told:
    told = at(Stage.TRAIN, stages={"train": {"stallSeconds": 60}})
    told.change("wan-train-1", running=True, last_log=START)
    told.wait(1000)
    told.push(stage="train", attempt=2, updatedAt="2026-01-01T00:00:20Z")
    told.settle()
    told.push(stage="export", attempt=1, updatedAt="2026-01-01T00:00:20Z")
    told.settle()
    told.push(stage="train", attempt=1)
    told.settle()
    return told


def time_to_live() -> Told:
    told = Told(job=job(policy={"ttlSecondsAfterFinished": 100_000}))
    told.settle()
    told.fail("wan-check-1", code=Exit.USER, message="spec.dataset.uri: no videos.")
    told.wait(99_999)
    told.settle()
    told.wait(2)
    told.settle()
    return told


def cleanup(policy: str) -> Told:
    told = Told(job=job(policy={"cleanup": policy, "ttlSecondsAfterFinished": 60}))
    told.reach(Stage.PREPARE)
    told.lines.clear()
    told.add("wan-train-1", Stage.TRAIN, 1)
    told.add("wan-train-2", Stage.TRAIN, 2, deleting=True)
    told.add("wan-train-3", Stage.TRAIN, 3, finished=True)
    told.fail("wan-prepare-1", code=Exit.USER)
    told.add("wan-train-4", Stage.TRAIN, 4)
    told.settle()
    return told


def retried_from_check() -> Told:
    told = Told()
    told.reach(Stage.TRAIN)
    told.fail("wan-train-1", code=Exit.USER)
    told.wait(30)
    told.edit(retry={"number": 2, "stage": "check"})
    told.edit(retry={"number": 4})
    told.edit(retry={"number": 3})
    return told


def retried_from_a_later_stage() -> Told:
    told = at(Stage.TRAIN)
    told.fail("wan-train-1", code=Exit.USER)
    told.wait(30)
    told.edit(retry={"number": 1, "stage": "sample"})
    told.fail("wan-train-2", code=Exit.USER)
    told.push(stage="train", attempt=2, loss="0.3")
    told.edit(retry={"number": 2, "stage": "convert"})
    return told


def retries_that_make_no_sense() -> Told:
    told = at(Stage.TRAIN, stages={"export": {"enabled": False}, "sample": {"enabled": False}})
    told.edit(retry={"number": 1})
    told.succeed("wan-train-1", counts={"steps": 3})
    told.add("wan-train-9", Stage.TRAIN, 9)
    told.edit(retry={"number": 2})
    told.edit(retry={"number": 3, "stage": "sample"})
    told.edit(retry={"number": 4, "stage": "train"}, cancel=True)
    told.add("wan-train-8", Stage.TRAIN, 8)
    told.edit(retry={"number": 5, "stage": "train"}, cancel=False)
    return told


def retried_before_it_began() -> Told:
    told = Told(job=job(stages={"prepare": {"video": {"frames": 16}}}))
    told.settle()
    told.wait(10)
    told.job["spec"]["stages"] = {}
    told.edit(retry={"number": 1, "stage": "train"})
    return told


def a_pool_that_is_waited_for() -> Told:
    told = Told(pools={})
    told.settle()
    told.settle()
    told.say("the pool is there")
    told.pools["cpu"] = PoolSpec(accelerator=Accelerator.CPU, devices_per_node=2)
    told.wait(10)
    told.settle()
    return told


def cancelled_before_its_pool_is_there() -> Told:
    told = Told(pools={})
    told.settle()
    told.wait(10)
    told.edit(cancel=True)
    return told


def another_version_of_the_spec() -> Told:
    told = at(Stage.TRAIN)
    told.wait(10)
    told.say("spec.stages.train.novelty is set")
    told.job["spec"]["stages"] = {"train": {"novelty": 1}}
    told.settle()
    told.edit(cancel=True)
    told.say("spec.stages.train.novelty is taken back")
    del told.job["spec"]["stages"]
    told.settle()
    told.say("spec.policy is of another version")
    told.job["spec"]["policy"] = {"cleanup": 7}
    told.job["metadata"]["generation"] += 1
    told.settle()
    return told


def children_that_nothing_explains() -> Told:
    told = at(Stage.PREPARE, stages={"sample": {"enabled": False}})
    told.add("a-later-attempt", Stage.PREPARE, 3)
    told.add("the-next-attempt", Stage.PREPARE, 2)
    told.add("a-finished-later-one", Stage.PREPARE, 3, finished=True)
    told.add("the-next-one-finished", Stage.PREPARE, 2, finished=True)
    told.add("of-a-later-stage", Stage.TRAIN, 1)
    told.add("of-a-later-stage-finished", Stage.TRAIN, 1, finished=True)
    told.add("of-no-stage", Stage.SAMPLE, 1, finished=True)
    told.add("of-a-past-stage", Stage.CHECK, 1, finished=False)
    told.add("after-a-past-stage", Stage.CHECK, 2, finished=False)
    told.add("goes-already", Stage.CHECK, 3, deleting=True)
    told.settle()
    told.edit(suspend=True)
    return told


def attempts_that_were_forgotten() -> Told:
    told = at(Stage.PREPARE)
    status = told.job["status"]["stages"][1]
    status["attempts"][0]["number"] = 5
    told.change("wan-prepare-1", attempt=5)
    told.add("older-finished", Stage.PREPARE, 2, finished=True)
    told.add("older-running", Stage.PREPARE, 3)
    told.settle()
    told.say("an older one is still there when the next one is due")
    told.fail("wan-prepare-1")
    told.add("older-running", Stage.PREPARE, 3, deleting=True)
    told.wait(10)
    told.settle()
    told.lose("older-running")
    told.settle()
    return told


STORIES: dict[str, Callable[[], Told]] = {
    story.__name__.replace("_", "-"): story
    for story in (
        whole_on_accelerators,
        artifacts_that_exist,
        all_artifacts_exist,
        optional_stages_left_out,
        failures_up_to_the_limit,
        retries_of_a_stage,
        nodes_that_fail,
        a_check_without_keys,
        a_child_deleted_from_outside,
        pods_that_do_not_end,
        a_straggler_and_a_cancel,
        a_child_that_is_being_deleted,
        names_that_others_hold,
        room_that_is_waited_for,
        suspended_and_resumed,
        cancelled,
        the_deadline,
        failed_by_itself_at_the_deadline,
        a_right_that_the_operator_lacks,
        a_timeout,
        a_stall,
        a_stall_by_the_limit_that_the_stage_found,
        stages_that_say_nothing,
        progress_of_others,
        time_to_live,
        retried_from_check,
        retried_from_a_later_stage,
        retries_that_make_no_sense,
        retried_before_it_began,
        a_pool_that_is_waited_for,
        cancelled_before_its_pool_is_there,
        another_version_of_the_spec,
        children_that_nothing_explains,
        attempts_that_were_forgotten,
    )
} | {f"cleanup-{policy}": lambda policy=policy: cleanup(policy) for policy in ("none", "succeeded", "all")}


@pytest.mark.parametrize("name", STORIES)
def test_the_story_is_told_as_before(name: str) -> None:
    path = FOLDER / f"{name}.txt"
    text = STORIES[name]().text
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, "run UPDATE_GOLDEN=1 pytest tests/unit/decide and read the difference"


def test_every_file_belongs_to_a_story() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(STORIES)
