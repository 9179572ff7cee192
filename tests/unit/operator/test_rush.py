# SPDX-License-Identifier: Apache-2.0
"""Children go before words while many jobs come at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_operator.execute import execute
from kinema_operator.observed import Decision, Event, EventType
from kinema_operator.rush import MANY, PATIENCE, SPAN, SPEAKERS, Rush
from kinema_operator.store import Store

from tests.unit.operator.fakes import FakeKube, child, job


class Time:
    """Stands, unless somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(body: Callable[[Rush, Time], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()

    async def sleep(seconds: float) -> None:
        time.now += seconds

    async def scene() -> None:
        rush = Rush(clock=time)
        monkeypatch.setattr("kinema_operator.rush.asyncio.sleep", sleep)
        await body(rush, time)

    asyncio.run(scene())


def test_a_job_that_comes_alone_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(rush: Rush, time: Time) -> None:
        for _ in range(MANY - 1):
            rush.created()
        async with rush.over():
            assert time.now == 100.0

    run(body, monkeypatch)


def test_words_wait_until_a_rush_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(rush: Rush, time: Time) -> None:
        for _ in range(MANY):
            rush.created()
        async with rush.over():
            assert time.now == 100.0 + SPAN
        async with rush.over():
            assert time.now == 100.0 + SPAN

    run(body, monkeypatch)


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()

    async def scene() -> None:
        rush = Rush(clock=time)

        async def sleep(seconds: float) -> None:
            time.now += seconds
            for _ in range(MANY):
                rush.created()

        monkeypatch.setattr("kinema_operator.rush.asyncio.sleep", sleep)
        for _ in range(MANY):
            rush.created()
        async with rush.over():
            assert time.now == 100.0 + PATIENCE

    asyncio.run(scene())


def test_few_speak_at_a_time() -> None:
    async def scene() -> None:
        rush = Rush()
        inside, most = 0, 0

        async def speak() -> None:
            nonlocal inside, most
            async with rush.over():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(speak() for _ in range(5 * SPEAKERS)))
        assert most == SPEAKERS

    asyncio.run(scene())


def test_the_children_of_all_jobs_come_before_the_status_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema_operator.rush.SPAN", 0.2)

    async def scene() -> None:
        fake, store, rush = FakeKube(), Store(), Rush()
        news = (Event(EventType.NORMAL, "StageStarted", "check: attempt 1"),)

        async def start(number: int) -> None:
            seen = fake.put(VIDEO_TRAINING_JOBS, job(f"job-{number}", uid=f"u-{number}"))
            body = child(f"job-{number}-check-1", uid=f"c-{number}", owner=f"u-{number}")
            decision = Decision(create=(body,), status={"phase": "Running"}, events=news)
            for _ in range(number):
                await asyncio.sleep(0)
            await execute(job=seen, decision=decision, kube=fake.kube, store=store, rush=rush)

        for _ in range(MANY):
            rush.created()
        await asyncio.gather(*(start(number) for number in range(20)))
        verbs = [(verb, plural) for verb, plural, _ in fake.calls]
        assert verbs[:20] == [("create", "jobs")] * 20
        assert sorted(verbs[20:]) == sorted([("patch", "videotrainingjobs"), ("create", "events")] * 20)

    asyncio.run(scene())
