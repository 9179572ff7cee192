# SPDX-License-Identifier: Apache-2.0
"""How often one pod may post."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import REGISTRY

from kinema_server.limits import Limiter
from kinema_server.refusal import Refusal
from kinema_server.routes.posts import POST_PATH

from tests.unit.server.conftest import POST, World

pytestmark = [pytest.mark.unit, pytest.mark.anyio]


def test_a_bucket_is_emptied_and_grows_back() -> None:
    now = 0.0
    limiter = Limiter(rate=2, burst=3, clock=lambda: now)
    for _ in range(3):
        limiter.take("a")
    with pytest.raises(Refusal) as caught:
        limiter.take("a")
    assert (caught.value.code, caught.value.headers) == (429, {"Retry-After": "1"})
    limiter.take("b")
    now = 0.5
    limiter.take("a")
    with pytest.raises(Refusal):
        limiter.take("a")
    now = 100
    for _ in range(3):
        limiter.take("a")
    with pytest.raises(Refusal):
        limiter.take("a")


async def test_a_pod_that_posts_all_the_time_is_told_to_wait(world: World) -> None:
    codes = [(await world.post()).status_code for _ in range(25)]
    assert codes[:20] == [200] * 20
    assert codes[-1] == 429
    answer = await world.post()
    assert (answer.status_code, answer.json()["reason"]) == (429, "TooManyRequests")
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["instance"] == POST
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
    # Nothing was asked of the API server for what was refused.
    assert len(world.fake.sent("POST", "tokenreviews")) == 1


async def test_what_is_turned_away_is_counted_and_told_of_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    labels = {"method": "POST", "route": POST_PATH, "code": "429"}
    before = REGISTRY.get_sample_value("kinema_server_requests_total", labels) or 0
    with caplog.at_level(logging.INFO, logger="kinema_server"):
        codes = [(await world.post(content=b" " * (1 << 20))).status_code for _ in range(60)]
    held = codes.count(429)
    assert set(codes) == {413, 429}
    assert held > 30
    assert REGISTRY.get_sample_value("kinema_server_requests_total", labels) == before + held
    told = [record for record in caplog.records if record.message == "posts held back"]
    assert [(record.levelname, vars(record)["path"]) for record in told] == [("WARNING", POST)]
    assert sum(vars(record).get("code") == 429 for record in caplog.records) == 0
    assert len([record for record in caplog.records if record.message == "request"]) == codes.count(413)


async def test_a_flood_holds_back_no_other_pod_and_no_reader(world: World) -> None:
    world.reviews["other"] = world.review()
    while (await world.post()).status_code != 429:
        pass
    assert (await world.post(token="other")).status_code == 200
    assert (await world.get("/v1alpha1/namespaces/team/videotrainingjobs/wan")).status_code == 200
    # Without a token there is nobody to hold back.
    assert [(await world.post(token="")).status_code for _ in range(25)] == [401] * 25
