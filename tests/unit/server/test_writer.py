# SPDX-License-Identifier: Apache-2.0
"""When progress is written, and onto what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kinema_api.names import Stage
from kinema_api.status import Progress
from kinema_server.figures import timestamp
from kinema_server.refusal import Refusal
from kinema_server.writer import Writer, delay, with_loss, with_steps

from tests.unit.kube.fake import Answer, FakeKube, Request, fake_kube, status
from tests.unit.server.conftest import until

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

JOB = "/apis/kinema.dev/v1alpha1/namespaces/team/videotrainingjobs/wan"
NOW = datetime(2026, 11, 21, 10, 0, 0, tzinfo=UTC)


def progress(percentage: int, *, stage: Stage = Stage.TRAIN, attempt: int = 1, at: datetime = NOW) -> Progress:
    return Progress(
        stage=stage, attempt=attempt, percentage=percentage, percent=f"{percentage}%", updated_at=timestamp(at)
    )


class Desk:
    """A writer in front of a fake API server with one job."""

    def __init__(self, fake: FakeKube, interval: float) -> None:
        self.fake = fake
        self.uid: str = fake.put(JOB, {"metadata": {"name": "wan", "namespace": "team"}})["metadata"]["uid"]
        self.writer = Writer(fake.kube, interval=interval)

    async def submit(self, percentage: int, **more: Any) -> None:
        await self.writer.submit(
            namespace="team",
            name="wan",
            uid=self.uid,
            progress=progress(percentage, **{"at": datetime.now(UTC), **more}),
        )

    @property
    def written(self) -> list[str]:
        return [request.body["status"]["progress"]["percent"] for request in self.fake.sent("PATCH")]


@asynccontextmanager
async def desk(interval: float) -> AsyncIterator[Desk]:
    async with fake_kube() as fake:
        made = Desk(fake, interval)
        try:
            yield made
        finally:
            await made.writer.close()


async def test_the_first_and_the_last_post_are_written_at_once_and_nothing_between() -> None:
    async with desk(600) as at:
        for percentage in (0, 1, 2, 99, 100):
            await at.submit(percentage)
        assert at.written == ["0%", "100%"]


async def test_a_last_post_that_is_repeated_is_written_once() -> None:
    async with desk(600) as at:
        for _ in range(5):
            await at.submit(100)
        assert at.written == ["100%"]
        await at.submit(100, attempt=2)
        assert at.written == ["100%", "100%"]


async def test_a_new_attempt_or_stage_is_written_at_once() -> None:
    async with desk(600) as at:
        await at.submit(50)
        await at.submit(10, attempt=2)
        await at.submit(0, stage=Stage.EXPORT)
        assert at.written == ["50%", "10%", "0%"]


def test_the_last_loss_stays_in_sight_after_training() -> None:
    job = {"status": {"progress": {"stage": "train", "loss": "0.1234"}}}
    assert with_loss(progress(0, stage=Stage.EXPORT), job).loss == "0.1234"
    assert with_loss(progress(50).model_copy(update={"loss": "0.2"}), job).loss == "0.2"
    assert with_loss(progress(0), {}).loss is None


def test_the_steps_of_an_attempt_stay_in_sight_where_a_post_has_none() -> None:
    told = progress(50).model_copy(update={"step": 60, "total_steps": 120})
    job = {"status": {"progress": told.wire()}}
    shown = with_steps(progress(70), job)
    assert (shown.step, shown.total_steps) == (60, 120)
    shown = with_steps(progress(100), job)
    assert (shown.step, shown.total_steps) == (120, 120)
    assert with_steps(progress(100, attempt=2), job).total_steps is None
    assert with_steps(progress(100).model_copy(update={"step": 9, "total_steps": 9}), job).step == 9
    assert with_steps(progress(100), {}).step is None


async def test_the_latest_post_is_written_when_the_interval_has_passed() -> None:
    async with desk(0.3) as at:
        started = asyncio.get_running_loop().time()
        for percentage in (1, 2, 3):
            await at.submit(percentage)
        await until("the latest value was lost", lambda: at.written == ["1%", "3%"])
        assert asyncio.get_running_loop().time() - started >= 0.3
        await until("the lane stays for ever", lambda: len(at.writer) == 0)


async def test_what_waits_is_written_at_the_end() -> None:
    async with desk(600) as at:
        await at.submit(1)
        await at.submit(2)
        await at.writer.close()
        assert at.written == ["1%", "2%"]
        with pytest.raises(Refusal, match="going down"):
            await at.submit(3)


async def test_another_replica_counts_too() -> None:
    async with desk(600) as at:
        at.fake.objects[JOB]["status"] = {"progress": progress(40, at=datetime.now(UTC)).wire()}
        await at.submit(41)
        assert at.written == []
        await at.submit(100)
        assert at.written == ["100%"]


async def test_nothing_is_written_onto_another_job_of_the_name() -> None:
    async with desk(600) as at:
        await at.submit(1)
        at.fake.put(JOB, {"metadata": {"name": "wan", "namespace": "team"}})
        with pytest.raises(Refusal, match="is gone") as caught:
            await at.submit(100)
        assert caught.value.code == 404
        assert at.written == ["1%"]


async def test_a_job_that_is_replaced_between_read_and_write_gets_nothing() -> None:
    async with desk(600) as at:

        def replace(request: Request) -> Answer | None:
            if request.method == "PATCH" and not request.headers.get("x-seen"):
                at.fake.hooks.clear()
                at.fake.put(JOB, {"metadata": {"name": "wan", "namespace": "team"}})
            return None

        at.fake.hooks.append(replace)
        with pytest.raises(Refusal, match="is gone"):
            await at.submit(1)
        assert "status" not in at.fake.objects[JOB]


async def test_a_write_that_crosses_the_operators_is_done_again() -> None:
    async with desk(600) as at:

        def cross(request: Request) -> Answer | None:
            if request.method == "PATCH":
                at.fake.hooks.clear()
                at.fake.put(JOB, {**at.fake.objects[JOB], "status": {"phase": "Running"}})
            return None

        at.fake.hooks.append(cross)
        await at.submit(1)
        written = at.fake.objects[JOB]["status"]
        assert (written["phase"], written["progress"]["percent"]) == ("Running", "1%")


async def test_a_failed_write_is_told_and_tried_again() -> None:
    async with desk(0.1) as at:
        at.fake.hooks.append(lambda request: (500, status(500, "InternalError", "etcd is away")))
        with pytest.raises(Refusal, match="tried again") as caught:
            await at.submit(100)
        assert caught.value.code == 503
        at.fake.hooks.clear()
        await until("the last value was lost", lambda: at.written[-1:] == ["100%"])
        assert at.fake.objects[JOB]["status"]["progress"]["percent"] == "100%"


WRITTEN = {"status": {"progress": progress(40, at=NOW).wire()}}
FINISHED = {"status": {"progress": progress(100, at=NOW).wire()}}
BEGUN = {"status": {"stage": "train", "progress": {"stage": "train", "attempt": 1}}}
ATTEMPTS = {"status": {"stages": [{"name": "train", "attempts": [{"number": 1}, {"number": 2}]}]}}


@pytest.mark.parametrize(
    ("job", "post", "seconds"),
    [
        ({}, progress(1), 0),
        (WRITTEN, progress(41), 10),
        (WRITTEN, progress(100), 0),
        (FINISHED, progress(100), 10),
        (FINISHED, progress(100, attempt=2), 0),
        (WRITTEN, progress(41, attempt=2, at=NOW), 0),
        (ATTEMPTS, progress(1, attempt=2), 0),
        (ATTEMPTS, progress(1, stage=Stage.EXPORT), 0),
        # A clock of another replica that is ahead does not silence this one for longer than the interval.
        ({"status": {"progress": progress(40, at=NOW + timedelta(days=1)).wire()}}, progress(41), 15),
        ({"status": {"progress": {"stage": "train", "attempt": 1, "updatedAt": "yesterday"}}}, progress(41), 0),
    ],
)
def test_how_long_a_write_waits(job: dict[str, Any], post: Progress, seconds: float) -> None:
    assert delay(job, post, interval=15, now=NOW + timedelta(seconds=5)) == seconds


@pytest.mark.parametrize(
    ("job", "post"),
    [
        (ATTEMPTS, progress(100, attempt=1)),
        (WRITTEN, progress(99, stage=Stage.FEATURES, at=NOW - timedelta(seconds=3))),
        # A post that is late: the next stage has begun, and has said nothing yet.
        (
            {"status": {"stage": "train", "progress": {"stage": "train", "attempt": 1}}},
            progress(100, stage=Stage.FEATURES),
        ),
    ],
)
def test_who_was_followed_by_another_is_told_so(job: dict[str, Any], post: Progress) -> None:
    with pytest.raises(Refusal) as caught:
        delay(job, post, interval=15, now=NOW)
    assert caught.value.code == 409
