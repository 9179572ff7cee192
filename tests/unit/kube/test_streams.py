# SPDX-License-Identifier: Apache-2.0
"""Answers that go on, and requests in somebody else's name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from kinema_kube.errors import GoneError, NotFoundError, UnreachableError
from kinema_kube.resources import PODS, VIDEO_TRAINING_JOBS
from kinema_kube.streams import Change, log_lines, watch

from tests.unit.kube.fake import FakeKube, Request, fake_kube, status

pytestmark = [pytest.mark.unit, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def sending(fake: FakeKube, *chunks: bytes) -> None:
    async def answer() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    fake.streams.append(lambda request: answer())


def event(kind: str, version: int) -> bytes:
    return json.dumps({"type": kind, "object": {"metadata": {"resourceVersion": str(version)}}}).encode() + b"\n"


async def watched(fake: FakeKube) -> list[Change]:
    return [change async for change in watch(fake.kube, VIDEO_TRAINING_JOBS, namespace="team", version="5")]


async def test_events_are_put_together_from_pieces() -> None:
    async with fake_kube() as fake:
        data = event("ADDED", 6) + event("BOOKMARK", 7)
        sending(fake, data[:10], data[10:70], data[70:])
        assert [(change.kind, change.version) for change in await watched(fake)] == [("ADDED", 6), ("BOOKMARK", 7)]
        (request,) = fake.requests
        assert request.query["resourceVersion"] == "5"
        assert request.query["allowWatchBookmarks"] == "true"


async def test_an_error_in_a_watch_is_raised() -> None:
    async with fake_kube() as fake:
        sending(fake, json.dumps({"type": "ERROR", "object": status(410, "Expired", "too old")}).encode() + b"\n")
        with pytest.raises(GoneError, match="too old"):
            await watched(fake)


@pytest.mark.parametrize("line", [b"garbage\n", b"[]\n", b'{"type": "ADDED"}\n'])
async def test_what_is_no_event_breaks_the_watch(line: bytes) -> None:
    async with fake_kube() as fake:
        sending(fake, line)
        with pytest.raises(UnreachableError, match="no event"):
            await watched(fake)


async def test_a_log_is_read_to_its_last_line() -> None:
    async with fake_kube() as fake:
        sending(fake, b"one\r\ntwo\nth", b"ree")
        lines = log_lines(fake.kube, "wan-x", namespace="team", container="pytorch", follow=True, tail=7)
        assert [line async for line in lines] == ["one", "two", "three"]
        (request,) = fake.requests
        assert (request.query["follow"], request.query["tailLines"]) == ("true", "7")


async def test_a_refusal_is_typed() -> None:
    async with fake_kube() as fake:
        with pytest.raises(NotFoundError):
            await anext(log_lines(fake.kube, "absent", namespace="team", container="pytorch", follow=False))


async def test_requests_in_somebodys_name_carry_their_token_alone() -> None:
    async with fake_kube() as fake:
        fake.kube.api.configuration.api_key["authorization"] = "Bearer own"
        fake.put("/api/v1/namespaces/team/pods/x", {"metadata": {"name": "x"}})

        async def asked(request_of: str) -> Request:
            await (fake.kube.in_name_of(request_of) if request_of else fake.kube).get(PODS, "x", namespace="team")
            return fake.requests[-1]

        assert (await asked("")).headers["authorization"] == "Bearer own"
        assert (await asked("mary")).headers["authorization"] == "Bearer mary"
        assert (await asked("")).headers["authorization"] == "Bearer own"
        mary = fake.kube.in_name_of("mary")
        assert mary.api.configuration.cert_file is None
        assert mary.api.configuration.api_key == {}


async def test_a_trial_is_marked_as_one() -> None:
    async with fake_kube() as fake:
        await fake.kube.create(PODS, {"metadata": {"name": "x"}}, namespace="team", dry_run=True)
        await fake.kube.create(PODS, {"metadata": {"name": "x"}}, namespace="team")
        assert [request.query.get("dryRun") for request in fake.requests] == ["All", None]
