# SPDX-License-Identifier: Apache-2.0
"""A right that the operator lacks: the job says which, and goes on when it is given."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from kinema_kube.errors import ForbiddenError, KubeError, ServerError, UnreachableError
from kinema_kube.resources import JOBS, PODS
from kinema_operator.denied import hindered

from tests.unit.operator.fakes import FakeKube, child, job, running
from tests.unit.operator.test_controller import Loop, play
from tests.unit.operator.test_observe import look, pod

Raw = dict[str, Any]
NOW = datetime(2026, 11, 1, 11, tzinfo=UTC)
FIX = "let the administrator give the operator the right that it names: the chart has it"


def forbidden(verb: str, resource: str) -> ForbiddenError:
    """As the API server says it."""
    said = f'{resource} is forbidden: User "kinema-operator" cannot {verb} resource "{resource}" in API group ""'
    return ForbiddenError(said, status=403)


def told(loop: Loop, reason: str = "Forbidden") -> list[Raw]:
    events = [item for key, item in loop.fake.objects.items() if key[0] == "events"]
    return [event for event in events if event["reason"] == reason]


def test_what_cannot_be_observed_is_said_once_and_forgotten_when_it_can() -> None:
    async def body(loop: Loop) -> None:
        await loop.settle()
        failed = {"conditions": [{"type": "Failed", "status": "True"}]}
        ((_, made),) = loop.store.children("u-1")
        loop.store.put(JOBS, {**made, "status": failed})
        loop.fake.trouble["list", "pods"] = [forbidden("list", "pods") for _ in range(3)]
        for _ in range(3):
            loop.queue.add("u-1")
            await loop.settle()
            assert 'cannot list resource "pods"' in loop.status["message"]
            assert FIX in loop.status["diagnosis"]
            assert loop.status["phase"] == "Running"
        reasons = {item["type"]: item["reason"] for item in loop.status["conditions"]}
        assert reasons["Running"] == "Forbidden"
        assert len(told(loop)) == 1
        for _ in range(2):
            loop.queue.add("u-1")
            await loop.settle()
        assert "cannot list" not in loop.status["message"] + loop.status["diagnosis"]
        assert loop.status["stages"][0]["attempts"][0]["state"] == "Failed"

    play(body)


def test_what_cannot_be_carried_out_is_said_without_a_storm_of_writes() -> None:
    async def body(loop: Loop) -> None:
        await loop.settle()
        loop.fake.trouble["delete", "jobs"] = [forbidden("delete", "jobs") for _ in range(5)]
        paused = job()
        paused["spec"]["policy"] = {"suspend": True}
        paused["status"] = loop.status
        loop.see(paused)
        for _ in range(5):
            await loop.settle()
            loop.clock.advance(300)
        assert 'cannot delete resource "jobs"' in loop.status["message"]
        assert loop.status["phase"] == "Suspended"
        writes = loop.fake.verbs("videotrainingjobs").count("patch")
        assert writes <= 5, "the status is not written at each try"
        for _ in range(4):
            await loop.settle()
            loop.clock.advance(300)
        assert ("jobs", "team", "wan-check-1") not in loop.fake.objects
        assert "cannot delete" not in loop.status["message"] + loop.status["diagnosis"]
        assert len(told(loop)) == 1

    play(body)


def test_a_job_that_has_ended_keeps_its_status_and_gets_an_event() -> None:
    ended = job(status={"phase": "Succeeded", "message": "done"})
    decision = hindered(ended, str(forbidden("delete", "videotrainingjobs")), NOW)
    assert decision.status is None
    (event,) = decision.events
    assert (event.reason, 'cannot delete resource "videotrainingjobs"' in event.message) == ("Forbidden", True)


@pytest.mark.parametrize(
    "error",
    [
        forbidden("get", "pods/log"),
        ServerError('Get "https://10.0.0.9:10250/containerLogs": connect: connection refused', status=500),
        UnreachableError("GET /log: TimeoutError: "),
    ],
    ids=["denied", "kubelet away", "no answer"],
)
def test_a_log_that_cannot_be_read_harms_nobody(error: KubeError, caplog: pytest.LogCaptureFixture) -> None:
    store_job = job(status=running())
    attempt = store_job["status"]["stages"][0]["attempts"][0]
    attempt["runningAt"] = "2026-11-01T10:00:00Z"
    store_job["status"]["progress"] = {
        "stage": "check",
        "attempt": 1,
        "updatedAt": "2026-11-01T10:00:00Z",
        "metrics": {"stall_limit_seconds": "10"},
    }
    loop = Loop()
    store_job["status"]["resolved"] = resolved(loop)
    store, fake = loop.store, FakeKube()
    store.put(JOBS, child(status={"active": 1, "ready": 1}))
    fake.put(PODS, pod("wan-check-1-x", phase="Running"))
    fake.trouble["get", "pods/log"] = [error]
    view = look(store, fake, store_job, after=600)
    assert fake.verbs("pods/log") == ["get"]
    assert view.observed.children[0].last_log is None
    assert "a stall cannot be told" in caplog.text


def test_events_that_cannot_be_read_are_missed_aloud(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    loop.store.put(JOBS, child())
    loop.fake.trouble["list", "events"] = [forbidden("list", "events")]
    with caplog.at_level(logging.WARNING):
        look(loop.store, loop.fake, job(status=running()), after=60)
    assert 'cannot list resource "events"' in caplog.text


def resolved(loop: Loop) -> Raw:
    """What a job of the loop depends on, as its status keeps it."""
    found: list[Raw] = []

    async def body(fresh: Loop) -> None:
        await fresh.settle()
        found.append(fresh.status["resolved"])

    play(body)
    return found[0]
