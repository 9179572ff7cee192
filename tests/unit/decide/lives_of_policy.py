# SPDX-License-Identifier: Apache-2.0
"""Stories of the job as a whole: paused, cancelled, out of time, run again, cleaned up, and not understood."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kinema_api.exits import Exit
from kinema_api.names import Stage
from kinema_api.pool import Accelerator, PoolSpec

from tests.unit.decide.story import job
from tests.unit.decide.transcript import Told, at, done


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
    told.push(stage="train", attempt=1, loss="0.3")
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


def a_right_that_the_operator_lacks() -> Told:
    told = at(Stage.TRAIN)
    told.denied = 'pods is forbidden: User "kinema" cannot list resource "pods"'
    told.say("the operator may not list pods")
    told.settle()
    told.edit(cancel=True)
    return told


STORIES: tuple[Callable[[], Told], ...] = (
    suspended_and_resumed,
    cancelled,
    the_deadline,
    failed_by_itself_at_the_deadline,
    time_to_live,
    retried_from_check,
    retried_from_a_later_stage,
    retries_that_make_no_sense,
    retried_before_it_began,
    a_pool_that_is_waited_for,
    cancelled_before_its_pool_is_there,
    another_version_of_the_spec,
    a_right_that_the_operator_lacks,
)
CLEANUPS = {f"cleanup-{policy}": partial(cleanup, policy) for policy in ("none", "succeeded", "all")}
