# SPDX-License-Identifier: Apache-2.0
"""How often one pod may post."""

from __future__ import annotations

import pytest

from kinema_server.limits import Limiter
from kinema_server.refusal import Refusal

from tests.unit.server.conftest import World

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
    # Nothing was asked of the API server for what was refused.
    assert len(world.fake.sent("POST", "tokenreviews")) == 1
