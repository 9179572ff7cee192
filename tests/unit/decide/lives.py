# SPDX-License-Identifier: Apache-2.0
"""Stories of attempts: how they run, fail, are lost, and wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from kinema_api.exits import Exit, Termination
from kinema_api.names import Stage
from kinema_api.pool import Accelerator, PoolSpec

from tests.unit.decide.story import PLATFORM, START, begun, job, pod
from tests.unit.decide.transcript import Told, at, began, done

GPUS = PoolSpec(accelerator=Accelerator.NVIDIA, devices_per_node=8, nodes=4)
GPU_JOB: dict[str, Any] = {"defaults": {"pool": "h100", "nodes": 2, "devicesPerNode": 4}}
FOLDER_IN_POD = "file:///kinema/volumes/ws/kinema"


def gpu_told(**spec: Any) -> Told:
    images = {**PLATFORM.images, "wan2.1/nvidia": "kinema/wan2.1-nvidia:1"}
    return Told(job=job(**{**GPU_JOB, **spec}), pools={"h100": GPUS}, platform=replace(PLATFORM, images=images))


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


STORIES: tuple[Callable[[], Told], ...] = (
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
    a_timeout,
    a_stall,
    a_stall_by_the_limit_that_the_stage_found,
    stages_that_say_nothing,
    progress_of_others,
    children_that_nothing_explains,
    attempts_that_were_forgotten,
)
