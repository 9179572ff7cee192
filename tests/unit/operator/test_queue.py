# SPDX-License-Identifier: Apache-2.0
"""The queue under adds, failures and cancellations that come at the worst moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from kinema_operator.queue import BACKOFF_FIRST, BACKOFF_LAST, Queue, backoff

from tests.unit.operator.clock import Clock


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, timeout=30))


def made(clock: Clock | None = None) -> Queue:
    clock = clock or Clock()
    return Queue(later=clock.later, clock=clock)


async def empty(queue: Queue) -> bool:
    """Whether a worker would have to wait."""
    getter = asyncio.create_task(queue.get())
    for _ in range(3):
        await asyncio.sleep(0)
    waits = not getter.done()
    getter.cancel()
    await asyncio.gather(getter, return_exceptions=True)
    return waits


def test_a_key_stands_in_the_queue_once() -> None:
    async def body() -> None:
        queue = made()
        for key in ("a", "b", "a", "a"):
            queue.add(key)
        assert [(await queue.get())[0], (await queue.get())[0]] == ["a", "b"]
        assert await empty(queue)

    run(body())


def test_an_add_during_work_is_kept_for_later_and_not_given_to_another_worker() -> None:
    async def body() -> None:
        queue = made()
        queue.add("a")
        key, _ = await queue.get()
        queue.add("a")
        queue.add("a")
        assert await empty(queue)
        queue.done(key)
        assert (await queue.get())[0] == "a"
        queue.done("a")
        assert await empty(queue)

    run(body())


def test_done_without_news_is_the_end() -> None:
    async def body() -> None:
        queue = made()
        queue.add("a")
        queue.done((await queue.get())[0])
        assert await empty(queue)
        assert len(queue) == 0

    run(body())


def test_of_two_appointments_the_earlier_stays() -> None:
    async def body() -> None:
        clock = Clock()
        queue = made(clock)
        queue.add_after("a", 10)
        queue.add_after("a", 60)
        queue.add_after("a", 5)
        assert queue.delayed == 1
        clock.advance(4.9)
        assert await empty(queue)
        clock.advance(0.1)
        queue.done((await queue.get())[0])
        clock.advance(100)
        assert await empty(queue)

    run(body())


def test_a_look_voids_older_appointments_and_keeps_those_it_makes() -> None:
    async def body() -> None:
        clock = Clock()
        queue = made(clock)
        queue.add_after("a", 10)
        queue.add("a")
        key, _ = await queue.get()
        assert queue.delayed == 0
        queue.add_after(key, 20)
        queue.done(key)
        clock.advance(15)
        assert await empty(queue)
        clock.advance(5)
        assert (await queue.get())[0] == "a"

    run(body())


def test_an_appointment_that_falls_due_during_work_is_kept() -> None:
    async def body() -> None:
        clock = Clock()
        queue = made(clock)
        queue.add("a")
        key, _ = await queue.get()
        queue.add_after(key, 1)
        clock.advance(2)
        assert await empty(queue)
        queue.done(key)
        assert (await queue.get())[0] == "a"

    run(body())


def test_the_wait_in_the_queue_is_told() -> None:
    async def body() -> None:
        clock = Clock()
        queue = made(clock)
        queue.add("a")
        clock.advance(3)
        queue.add("a")
        assert await queue.get() == ("a", 3.0)

    run(body())


def test_failures_back_off_until_a_success() -> None:
    async def body() -> None:
        queue = made()
        waits = []
        for _ in range(12):
            queue.add("a")
            key, _ = await queue.get()
            waits.append(queue.retry(key))
            queue.done(key)
        assert waits[0] == BACKOFF_FIRST
        assert waits[4] > 4 * waits[0]
        assert all(BACKOFF_FIRST <= wait <= BACKOFF_LAST for wait in waits)
        queue.forget("a")
        assert queue.retry("a") == BACKOFF_FIRST
        assert queue.retry("b", at_least=17) == 17

    run(body())


@pytest.mark.parametrize("failures", [0, 1, 8, 9, 40, 10_000])
@pytest.mark.parametrize("luck", [0.0, 0.5, 0.999])
def test_backoff_stays_within_its_bounds(failures: int, luck: float) -> None:
    assert BACKOFF_FIRST <= backoff(failures, draw=lambda: luck) <= BACKOFF_LAST


def test_jitter_halves_at_most() -> None:
    assert backoff(20, draw=lambda: 0.0) == BACKOFF_LAST / 2


def test_a_cancelled_worker_takes_no_key_with_it() -> None:
    async def body() -> None:
        queue = made()
        for _ in range(50):
            getter = asyncio.create_task(queue.get())
            await asyncio.sleep(0)
            queue.add("a")
            getter.cancel()
            if isinstance((await asyncio.gather(getter, return_exceptions=True))[0], BaseException):
                assert (await queue.get())[0] == "a"
            queue.done("a")

    run(body())


@pytest.mark.parametrize("seed", range(5))
def test_many_workers_never_share_a_key_and_never_miss_news(seed: int) -> None:
    """Each add bumps a version; when all is quiet, every key was looked at in its last version."""

    async def body() -> None:
        draw = random.Random(seed)
        queue = made()
        truth: dict[str, int] = {}
        seen: dict[str, int] = {}
        working: set[str] = set()

        async def worker() -> None:
            while True:
                key, _ = await queue.get()
                assert key not in working
                working.add(key)
                version = truth[key]
                for _ in range(draw.randrange(4)):
                    await asyncio.sleep(0)
                seen[key] = version
                working.remove(key)
                queue.done(key)

        workers = [asyncio.create_task(worker()) for _ in range(5)]
        for _ in range(2000):
            key = f"k{draw.randrange(12)}"
            truth[key] = truth.get(key, 0) + 1
            queue.add(key)
            if draw.random() < 0.3:
                await asyncio.sleep(0)
        while seen != truth:
            assert not any(worker.done() for worker in workers)
            await asyncio.sleep(0)
        assert not working
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    run(body())
