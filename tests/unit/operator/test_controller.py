# SPDX-License-Identifier: Apache-2.0
"""Workers around one job after another, with everything that can go wrong between two looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kinema_kube.errors import ForbiddenError, ServerError, TooManyRequestsError
from kinema_kube.resources import JOBS, PODS, TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_operator.controller import DEFER, MANY, Controller
from kinema_operator.decide import decide
from kinema_operator.election import LeaseLostError
from kinema_operator.metrics import Metrics
from kinema_operator.queue import Queue
from kinema_operator.settings import Settings
from kinema_operator.store import Store

from tests.unit.operator.clock import Clock
from tests.unit.operator.fakes import FakeKube, child, job, pool

Raw = dict[str, Any]
IMAGES = {"stage": "stage:1", "wan2.1/cpu": "wan:1"}


class Loop:
    """A controller over an API server in memory and a clock that stands."""

    def __init__(self, **settings: Any) -> None:
        self.fake, self.store, self.clock, self.metrics = FakeKube(), Store(), Clock(), Metrics()
        self.queue = Queue(later=self.clock.later, clock=self.clock)
        self.controller = Controller(
            settings=Settings(images=IMAGES, **settings),
            kube=self.fake.kube,
            store=self.store,
            queue=self.queue,
            metrics=self.metrics,
        )
        self.store.put(TRAINING_POOLS, pool())
        self.see()

    def see(self, raw: Raw | None = None) -> None:
        """The job appears."""
        self.store.put(VIDEO_TRAINING_JOBS, self.fake.put(VIDEO_TRAINING_JOBS, raw or job()))
        self.queue.add((raw or job())["metadata"]["uid"])

    async def settle(self) -> None:
        """Let the workers look until nobody is busy and the queue is empty."""
        for _ in range(200):
            await asyncio.sleep(0)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await self.settle()

    def phases(self) -> set[str]:
        """Of all jobs."""
        jobs = [item for (kind, _, _), item in self.fake.objects.items() if kind == "videotrainingjobs"]
        return {item.get("status", {}).get("phase", "") for item in jobs}

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("kinema_reconciles_total", {"result": result}) or 0.0

    @property
    def status(self) -> Raw:
        found = self.fake.objects["videotrainingjobs", "team", "wan"].get("status", {})
        assert isinstance(found, dict)
        return found


def play(body: Callable[[Loop], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def scene() -> None:
        loop = Loop(**settings)
        loop.controller.start()
        try:
            await body(loop)
        finally:
            await loop.controller.drain()

    asyncio.run(asyncio.wait_for(scene(), timeout=30))


def test_a_new_job_gets_its_first_child_and_then_rests() -> None:
    async def body(loop: Loop) -> None:
        await loop.settle()
        assert loop.status["phase"] == "Running"
        assert loop.fake.verbs("jobs") == ["create"]
        # The look after our own write finds the child's uid, and the one after that nothing.
        for _ in range(5):
            loop.clock.advance(1)
            await loop.settle()
        assert loop.status["stages"][0]["attempts"][0]["uid"] == "uid-wan-check-1"
        assert loop.fake.verbs("videotrainingjobs") == ["patch", "patch"]
        assert len(loop.queue) == 0

    play(body)


def test_a_name_of_an_earlier_owner_is_waited_for() -> None:
    async def body(loop: Loop) -> None:
        loop.fake.put(JOBS, child(owner="u-old", uid="c-old"))
        await loop.settle()
        assert "is not this job's" in loop.status["stages"][0]["message"]
        del loop.fake.objects["jobs", "team", "wan-check-1"]
        loop.clock.advance(2)
        await loop.settle()
        assert loop.status["stages"][0]["state"] == "Running"
        assert [item["metadata"]["name"] for _, item in loop.store.children("u-1")] == ["wan-check-1"]

    play(body)


def test_pods_of_a_child_that_a_predecessor_made_and_somebody_deleted_are_waited_for() -> None:
    """The status knows nothing of it."""

    async def body(loop: Loop) -> None:
        loop.fake.put(PODS, orphan())
        await loop.settle()
        assert loop.fake.verbs("jobs") == []
        for _ in range(3):
            loop.clock.advance(2)
            await loop.settle()
        assert "pods of an earlier attempt of check still end" in loop.status["message"]
        del loop.fake.objects["pods", "team", "wan-check-1-abcde"]
        loop.clock.advance(2)
        await loop.settle()
        assert loop.fake.verbs("jobs") == ["create"]

    play(body)


def test_pods_of_a_child_whose_status_could_not_be_written_are_waited_for() -> None:
    async def body(loop: Loop) -> None:
        loop.fake.trouble["patch", "videotrainingjobs"] = [ServerError("boom", status=500)]
        await loop.settle()
        assert loop.fake.verbs("jobs") == ["create"]
        made = loop.fake.objects.pop(("jobs", "team", "wan-check-1"))
        loop.store.discard(JOBS, made["metadata"]["uid"])
        loop.fake.put(PODS, orphan(of=made["metadata"]["uid"]))
        loop.clock.advance(10)
        await loop.settle()
        assert "pods of an earlier attempt of check still end" in loop.status["message"]
        assert loop.fake.verbs("jobs") == ["create"]

    play(body)


def test_a_job_that_began_under_this_operator_costs_no_list_of_pods() -> None:
    async def body(loop: Loop) -> None:
        await loop.settle()
        listed = loop.fake.verbs("pods")
        later = job(name="later", uid="u-2")
        loop.see(later)
        await loop.settle()
        assert ("jobs", "team", "later-check-1") in loop.fake.objects
        assert loop.fake.verbs("pods") == listed

    play(body)


def test_of_many_jobs_at_once_all_have_a_child_before_any_is_written_about() -> None:
    async def body(loop: Loop) -> None:
        for number in range(20):
            loop.see(job(name=f"many-{number}", uid=f"many-{number}"))
        await loop.until(lambda: loop.fake.verbs("jobs") == ["create"] * 21)
        early = len(loop.fake.verbs("videotrainingjobs"))
        assert early <= MANY
        # The child's own news change nothing before the time.
        loop.queue.add("many-0")
        await loop.settle()
        assert len(loop.fake.verbs("videotrainingjobs")) == early
        loop.clock.advance(DEFER)
        await loop.until(lambda: loop.phases() == {"Running"})
        assert loop.fake.verbs("jobs") == ["create"] * 21

    play(body)


def orphan(*, of: str = "c-gone") -> Raw:
    """A pod of the first attempt of check that runs on without its child."""
    labels = child()["metadata"]["labels"]
    owners = [{"kind": "Job", "name": "wan-check-1", "uid": of, "controller": True}]
    metadata = {"name": "wan-check-1-abcde", "namespace": "team", "labels": labels, "ownerReferences": owners}
    return {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": {"phase": "Running"}}


def test_a_refusal_is_told_once_and_tried_again() -> None:
    async def body(loop: Loop) -> None:
        loop.fake.trouble["create", "jobs"] = [ForbiddenError("exceeded quota", status=403) for _ in range(3)]
        for _ in range(4):
            await loop.settle()
            loop.clock.advance(300)
        await loop.settle()
        told = [item for key, item in loop.fake.objects.items() if key[0] == "events"]
        assert [item["reason"] for item in told] == ["CreateRefused", "StageStarted"]
        assert "exceeded quota" in told[0]["message"]
        assert loop.count("refused") == 3
        assert loop.status["phase"] == "Running"

    play(body)


def test_an_api_server_that_fails_is_tried_again_with_growing_patience() -> None:
    async def body(loop: Loop) -> None:
        loop.fake.trouble["create", "jobs"] = [ServerError("boom", status=500) for _ in range(3)]
        waits = []
        for _ in range(3):
            await loop.settle()
            (wait,) = [item.due - loop.clock() for item in loop.clock.appointments if not item.cancelled]
            waits.append(wait)
            loop.clock.advance(wait)
        await loop.settle()
        assert waits[0] < waits[2]
        assert loop.count("error") == 3
        assert loop.status["phase"] == "Running"

    play(body)


def test_an_api_server_that_asks_for_patience_gets_it() -> None:
    async def body(loop: Loop) -> None:
        loop.fake.trouble["create", "jobs"] = [TooManyRequestsError("slow down", status=429, retry_after=40)]
        await loop.settle()
        assert [item.due - loop.clock() for item in loop.clock.appointments if not item.cancelled] == [40]

    play(body)


def test_a_status_written_by_somebody_else_meanwhile_is_decided_about_again() -> None:
    async def body(loop: Loop) -> None:
        # The watch has not told of this version yet.
        loop.fake.put(VIDEO_TRAINING_JOBS, job(status={"progress": {"stage": "check"}}))
        await loop.settle()
        assert loop.count("stale") == 1
        assert loop.status["phase"] == "Running"
        assert loop.status["progress"] == {"stage": "check"}

    play(body)


def test_a_bug_costs_one_look_and_not_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = iter([True])

    def buggy(*arguments: Any) -> Any:
        if next(broken, False):
            raise KeyError("metadata")
        return decide(*arguments)

    monkeypatch.setattr("kinema_operator.controller.decide", buggy)

    async def body(loop: Loop) -> None:
        await loop.settle()
        assert loop.count("bug") == 1
        loop.clock.advance(2)
        await loop.settle()
        assert loop.status["phase"] == "Running"

    play(body)


def test_a_worker_that_sees_the_lease_lost_changes_nothing_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(loop: Loop) -> None:
        async def lost(*_: Any, **__: Any) -> Raw:
            raise LeaseLostError("somebody else may lead by now")

        monkeypatch.setattr(loop.fake, "create", lost)
        await loop.until(lambda: bool(loop.controller.troubles()))
        assert loop.fake.verbs("videotrainingjobs") == []
        assert loop.count("bug") == 0

    play(body, workers=1)


def test_a_deleted_job_is_forgotten() -> None:
    async def body(loop: Loop) -> None:
        loop.fake.objects.clear()
        await loop.settle()
        assert loop.count("gone") == 1
        loop.store.discard(VIDEO_TRAINING_JOBS, "u-1")
        loop.queue.add("u-1")
        await loop.settle()
        assert loop.fake.verbs("videotrainingjobs") == ["patch"]

    play(body)


def test_a_job_that_is_being_deleted_gets_nothing_new() -> None:
    async def body(loop: Loop) -> None:
        ending = job()
        ending["metadata"]["deletionTimestamp"] = "2026-11-01T10:00:00Z"
        loop.see(ending)
        await loop.settle()
        assert loop.fake.calls == []

    play(body)


def test_ended_attempts_are_counted_once() -> None:
    async def body(loop: Loop) -> None:
        await loop.settle()
        (child_now,) = loop.store.children("u-1")
        failed = {"conditions": [{"type": "Failed", "status": "True"}]}
        loop.store.put(JOBS, {**child_now[1], "status": failed})
        for _ in range(3):
            loop.queue.add("u-1")
            await loop.settle()
        labels = {"stage": "check", "result": "failed"}
        assert loop.metrics.registry.get_sample_value("kinema_attempts_total", labels) == 1

    play(body)


def test_a_worker_that_crashes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(loop: Loop) -> None:
        assert loop.controller.troubles() == []

        def broken(uid: str) -> None:
            raise MemoryError(uid)

        # Not an Exception of one job: the loop itself is broken.
        monkeypatch.setattr(loop.queue, "done", broken)
        loop.queue.add("u-1")
        await loop.until(lambda: bool(loop.controller.troubles()))
        assert loop.controller.troubles() == ["worker 0 is dead"]

    play(body, workers=1)


def test_a_stop_lets_the_look_under_way_end() -> None:
    async def scene() -> None:
        loop = Loop(workers=2)
        gate, inside = asyncio.Event(), asyncio.Event()
        create = loop.fake.create

        async def slow(*arguments: Any, **more: Any) -> Raw:
            inside.set()
            await gate.wait()
            return await create(*arguments, **more)

        loop.fake.create = slow  # type: ignore[method-assign]
        workers = loop.controller.start()
        await inside.wait()
        draining = asyncio.create_task(loop.controller.drain())
        await loop.settle()
        assert not draining.done()
        gate.set()
        await draining
        assert all(worker.done() for worker in workers)
        assert loop.status["phase"] == "Running"

    asyncio.run(asyncio.wait_for(scene(), timeout=30))
