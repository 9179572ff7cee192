# SPDX-License-Identifier: Apache-2.0
"""One leader at a time, whatever clocks, answers and rivals do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from pydantic import ValidationError

from kinema_kube.errors import ForbiddenError, ServerError
from kinema_kube.resources import LEASES
from kinema_operator.election import Lease, LeaseLostError
from kinema_operator.settings import Election

from tests.unit.operator.clock import Clock
from tests.unit.operator.fakes import FakeKube

SETTINGS = Election(lease_seconds=15, renew_seconds=10, retry_seconds=0.001)


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, timeout=30))


class Rivals:
    """Two replicas before one API server."""

    def __init__(self) -> None:
        self.fake, self.clock = FakeKube(), Clock()
        self.a, self.b = self.replica("a"), self.replica("b")

    def replica(self, identity: str) -> Lease:
        return Lease(kube=self.fake.kube, namespace="home", identity=identity, settings=SETTINGS, clock=self.clock)

    @property
    def spec(self) -> dict[str, Any]:
        found = self.fake.objects["leases", "home", "kinema-operator"]["spec"]
        assert isinstance(found, dict)
        return found


def test_the_first_leads_and_the_second_stands_by() -> None:
    async def body() -> None:
        rivals = Rivals()
        assert await rivals.a.attempt() == ""
        assert await rivals.b.attempt() == "a"
        assert rivals.spec["holderIdentity"] == "a"
        assert rivals.spec["leaseDurationSeconds"] == 15

    run(body())


def test_a_lease_expires_by_the_observers_own_clock() -> None:
    async def body() -> None:
        rivals = Rivals()
        await rivals.a.attempt()
        rivals.clock.advance(3600)
        # However old it says it is, it was seen just now for the first time.
        assert await rivals.b.attempt() == "a"
        rivals.clock.advance(14)
        assert await rivals.b.attempt() == "a"
        rivals.clock.advance(1)
        assert await rivals.b.attempt() == ""
        assert rivals.spec["leaseTransitions"] == 1

    run(body())


def test_a_renewed_lease_does_not_expire() -> None:
    async def body() -> None:
        rivals = Rivals()
        await rivals.a.attempt()
        for _ in range(5):
            assert await rivals.b.attempt() == "a"
            rivals.clock.advance(10)
            assert await rivals.a.attempt() == ""

    run(body())


def test_a_restarted_container_of_the_same_pod_leads_at_once() -> None:
    async def body() -> None:
        rivals = Rivals()
        await rivals.a.attempt()
        assert await rivals.replica("a").attempt() == ""
        assert rivals.spec["leaseTransitions"] == 0

    run(body())


def test_a_released_lease_is_free_at_once() -> None:
    async def body() -> None:
        rivals = Rivals()
        await rivals.a.attempt()
        await rivals.a.release()
        assert await rivals.b.attempt() == ""
        await rivals.a.release()
        assert rivals.spec["holderIdentity"] == "b"

    run(body())


def test_of_two_that_take_at_once_one_leads() -> None:
    async def body() -> None:
        rivals = Rivals()
        assert sorted(await asyncio.gather(rivals.a.attempt(), rivals.b.attempt())) in (["", "a"], ["", "b"])

    run(body())


def test_a_leader_that_was_replaced_knows_it() -> None:
    async def body() -> None:
        rivals = Rivals()
        await rivals.a.attempt()
        await rivals.b.attempt()
        rivals.clock.advance(15)
        assert await rivals.b.attempt() == ""
        with pytest.raises(LeaseLostError, match="b leads now"):
            await rivals.a.renew()
        await rivals.a.release()
        assert rivals.spec["holderIdentity"] == "b"

    run(body())


def test_a_leader_survives_a_short_failure_of_the_api_server() -> None:
    async def body() -> None:
        rivals = Rivals()
        await rivals.a.attempt()
        before = rivals.spec["renewTime"]
        rivals.fake.trouble["patch", "leases"] = [ServerError("boom", status=500)]
        renewing = asyncio.create_task(rivals.a.renew())
        async with asyncio.timeout(10):
            while rivals.spec["renewTime"] == before:
                assert not renewing.done()
                await asyncio.sleep(0)
        renewing.cancel()

    run(body())


def test_the_fence_holds_from_the_moment_at_which_somebody_else_may_lead() -> None:
    async def body() -> None:
        rivals = Rivals()
        with pytest.raises(LeaseLostError):
            rivals.a.fence()
        await rivals.a.attempt()
        await rivals.b.attempt()
        rivals.clock.advance(14)
        rivals.a.fence()
        await rivals.a.attempt()
        rivals.clock.advance(14)
        rivals.a.fence()
        assert await rivals.b.attempt() == "a"
        # Suspended, and awake again before its next renewal.
        rivals.clock.advance(15)
        with pytest.raises(LeaseLostError, match=r"not renewed for 29\.0 s"):
            rivals.a.fence()

    run(body())


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    async def body() -> None:
        rivals = Rivals()
        patch = rivals.fake.merge_patch

        async def slow(*arguments: Any, **more: Any) -> Any:
            answer = await patch(*arguments, **more)
            rivals.clock.advance(15)
            return answer

        await rivals.a.attempt()
        rivals.fake.merge_patch = slow  # type: ignore[method-assign]
        await rivals.a.attempt()
        with pytest.raises(LeaseLostError):
            rivals.a.fence()

    run(body())


@pytest.mark.parametrize("wrong", [{"renew_seconds": 15}, {"retry_seconds": 10}, {"lease_seconds": 9}])
def test_times_with_which_two_could_lead_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="two replicas could lead at once"):
        Election(**{"lease_seconds": 15, "renew_seconds": 10, "retry_seconds": 2} | wrong)


def test_a_leader_that_cannot_renew_in_time_gives_up() -> None:
    async def body() -> None:
        rivals = Rivals()
        await rivals.a.attempt()
        rivals.fake.trouble["patch", "leases"] = [ServerError("boom", status=500) for _ in range(1000)]
        renewing = asyncio.create_task(rivals.a.renew())
        async with asyncio.timeout(10):
            while not renewing.done():
                rivals.clock.advance(1)
                await asyncio.sleep(0.001)
        with pytest.raises(LeaseLostError, match="in time"):
            await renewing
        requests = len(rivals.fake.calls)
        await rivals.a.release()
        assert len(rivals.fake.calls) == requests

    run(body())


def test_a_renewal_whose_answer_was_lost_is_no_loss() -> None:
    async def body() -> None:
        rivals = Rivals()
        await rivals.a.attempt()
        lease = rivals.fake.objects["leases", "home", "kinema-operator"]
        rivals.fake.put(LEASES, lease)
        renewing = asyncio.create_task(rivals.a.renew())
        async with asyncio.timeout(10):
            while rivals.fake.verbs("leases").count("patch") < 2:
                assert not renewing.done()
                await asyncio.sleep(0)
        renewing.cancel()

    run(body())


def test_who_could_not_take_the_lease_does_not_say_that_it_stands_by(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        rivals = Rivals()
        denied = 'leases is forbidden: User "x" cannot get resource "leases"'
        rivals.fake.trouble["get", "leases"] = [ForbiddenError(denied, status=403) for _ in range(3)]
        said: list[bool] = []
        await rivals.a.acquire(standing_by=said.append)
        assert said == [False, False, False]
        (record,) = [record for record in caplog.records if "cannot be taken" in record.message]
        assert record.levelname == "ERROR" and denied in record.message
        stands = asyncio.Event()
        waiting = asyncio.create_task(rivals.b.acquire(standing_by=lambda able: stands.set() if able else None))
        async with asyncio.timeout(10):
            await stands.wait()
        waiting.cancel()

    run(body())
