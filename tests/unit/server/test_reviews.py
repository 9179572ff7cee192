# SPDX-License-Identifier: Apache-2.0
"""What is remembered of reviews, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kinema_server.refusal import Refusal
from kinema_server.reviews import REFUSAL_SECONDS, Reviews, Right

from tests.unit.kube.fake import FakeKube, Request, fake_kube

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

RIGHT = Right(verb="get", group="kinema.dev", resource="videotrainingjobs", namespace="team", name="wan")


def answering(fake: FakeKube, *, allowed: bool = True) -> dict[str, Any]:
    said = {"allowed": allowed, "authenticated": True}

    def hook(request: Request) -> tuple[int, dict[str, Any]]:
        return 201, {"status": {**said, "user": {"username": "mary"}}}

    fake.hooks.append(hook)
    return said


async def test_of_many_who_ask_at_once_one_does() -> None:
    async with fake_kube() as fake:
        answering(fake)
        reviews = Reviews(fake.kube, seconds=60)
        found = await asyncio.gather(*(reviews.identify("token") for _ in range(50)))
        await asyncio.gather(*(reviews.authorize("token", found[0], RIGHT) for _ in range(50)))
        assert [request.path.rpartition("/")[2] for request in fake.requests] == [
            "tokenreviews",
            "subjectaccessreviews",
        ]


async def test_a_grant_is_of_one_token_and_one_right() -> None:
    async with fake_kube() as fake:
        answering(fake)
        reviews = Reviews(fake.kube, seconds=60)
        mary = await reviews.identify("token")
        await reviews.identify("other")
        await reviews.identify("token", audience=None)
        await reviews.authorize("token", mary, RIGHT)
        await reviews.authorize("other", mary, RIGHT)
        await reviews.authorize("token", mary, Right("get", "", "pods", "team", subresource="log"))
        assert len(fake.requests) == 5


async def test_nothing_is_remembered_for_no_time() -> None:
    async with fake_kube() as fake:
        said = answering(fake)
        reviews = Reviews(fake.kube, seconds=0)
        mary = await reviews.identify("token")
        await reviews.authorize("token", mary, RIGHT)
        said["allowed"] = False
        with pytest.raises(Refusal, match=r"may not get videotrainingjobs\.kinema\.dev 'wan' in namespace 'team'"):
            await reviews.authorize("token", mary, RIGHT)


@pytest.mark.parametrize(("seconds", "kept"), [(60, REFUSAL_SECONDS), (1, 1)])
async def test_a_refusal_is_forgotten_no_later_than_a_grant(seconds: float, kept: float) -> None:
    async with fake_kube() as fake:
        reviews = Reviews(fake.kube, seconds=seconds)
        assert reviews._refused.ttl == kept <= reviews._granted.ttl
        answering(fake, allowed=False)
        mary = await reviews.identify("token")
        for _ in range(3):
            with pytest.raises(Refusal):
                await reviews.authorize("token", mary, RIGHT)
        assert len(fake.sent("POST", "subjectaccessreviews")) == 1


async def test_a_token_is_not_kept_in_memory() -> None:
    async with fake_kube() as fake:
        answering(fake)
        reviews = Reviews(fake.kube, seconds=60)
        await reviews.identify("a-secret-token")
        assert "a-secret-token" not in repr(list(reviews._granted))
