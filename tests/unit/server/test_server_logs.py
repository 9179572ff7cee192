# SPDX-License-Identifier: Apache-2.0
"""Logs by stage, attempt and rank: whole, cut, searched, followed and resumed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kinema_server.lookup import rank_of

from tests.unit.kube.fake import Request, status
from tests.unit.server.conftest import JOB, World
from tests.unit.server.upstream import events, until

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

LOGS = "/v1alpha1/namespaces/team/videotrainingjobs/wan/logs"
PODS = "/api/v1/namespaces/team/pods"
LINES = (
    "2026-11-22T10:00:00.1Z step 1 loss 0.5",
    "2026-11-22T10:00:00.12Z step 2 loss 0.4",
    "2026-11-22T10:00:00.12Z warning: slow",
    "2026-11-22T10:00:01Z step 3 loss 0.3",
)


def worker(index: int) -> dict[str, Any]:
    labels = {"training.kubeflow.org/replica-type": "worker", "training.kubeflow.org/replica-index": str(index)}
    return {"metadata": {"name": f"wan-train-2-worker-{index}", "labels": labels}}


MASTER = {
    "metadata": {
        "name": "wan-train-2-master-0",
        "labels": {"training.kubeflow.org/replica-type": "master", "training.kubeflow.org/replica-index": "0"},
    }
}


@pytest.fixture
def logs(world: World) -> list[Request]:
    """A job with two attempts of train, and pods that wrote lines; the requests for logs."""
    attempts = [{"number": 1, "child": "wan-train-1"}, {"number": 2, "child": "wan-train-2"}]
    world.fake.objects[JOB]["status"] = {"stage": "train", "stages": [{"name": "train", "attempts": attempts}]}
    world.fake.objects[PODS] = {"items": [worker(0), MASTER]}
    asked: list[Request] = []

    def stream(request: Request) -> AsyncIterator[bytes] | None:
        if not request.path.endswith("/log"):
            return None
        asked.append(request)
        return chunks()

    async def chunks() -> AsyncIterator[bytes]:
        data = "".join(f"{line}\n" for line in LINES).encode()
        yield data[:20]
        yield data[20:]

    world.fake.streams.append(stream)
    return asked


async def test_the_newest_attempt_of_what_runs_is_read(world: World, logs: list[Request]) -> None:
    answer = await world.get(LOGS)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.text.splitlines() == ["step 1 loss 0.5", "step 2 loss 0.4", "warning: slow", "step 3 loss 0.3"]
    assert logs[0].path == f"{PODS}/wan-train-2-master-0/log"
    assert (logs[0].query["tailLines"], logs[0].query["container"]) == ("1000", "pytorch")
    (pods,) = [request for request in world.fake.sent("GET", PODS) if request.path == PODS]
    assert "kinema.dev/attempt=2" in pods.query["labelSelector"]


async def test_parameters_choose_pod_and_lines(world: World, logs: list[Request]) -> None:
    answer = await world.get(f"{LOGS}?stage=train&attempt=1&rank=1&tail=7&since=2h&grep=warning")
    assert answer.text == "warning: slow\n"
    assert logs[0].path == f"{PODS}/wan-train-2-worker-0/log"
    assert (logs[0].query["tailLines"], logs[0].query["sinceSeconds"]) == ("7", "7200")
    await world.get(f"{LOGS}?since=2026-11-22T10:00:00Z")
    assert logs[1].query["sinceTime"] == "2026-11-22T10:00:00Z"
    assert "tailLines" not in logs[1].query


async def test_a_log_is_followed_and_goes_on_after_the_last_line(world: World, logs: list[Request]) -> None:
    headers = {"Authorization": "Bearer good"}
    async with world.client.stream("GET", f"{LOGS}?follow=true", headers=headers) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        start, *lines, end = await until(events(answer), "end")
    assert (start.kind, end.json) == ("start", {"reason": "the container has ended"})
    assert [line.data for line in lines][:2] == ["step 1 loss 0.5", "step 2 loss 0.4"]
    assert [line.id for line in lines][1:3] == ["2026-11-22T10:00:00.12Z/1", "2026-11-22T10:00:00.12Z/2"]
    async with world.client.stream(
        "GET", f"{LOGS}?follow=true", headers={**headers, "Last-Event-ID": lines[1].id}
    ) as answer:
        _, *rest, _ = await until(events(answer), "end")
    assert [line.data for line in rest] == ["warning: slow", "step 3 loss 0.3"]
    assert logs[1].query["sinceTime"] == "2026-11-22T10:00:00.12Z"
    assert "tailLines" not in logs[1].query


@pytest.mark.parametrize(
    ("query", "code", "why"),
    [
        ("stage=sample", 404, "has not started"),
        ("attempt=3", 404, "it has 1, 2"),
        ("rank=5", 404, "it has 0, 1"),
        ("since=yesterday", 422, "since"),
        ("tail=-1", 422, "tail"),
        ("stage=posttrain", 422, "stage"),
    ],
)
async def test_what_is_not_there_is_named(world: World, logs: list[Request], query: str, code: int, why: str) -> None:
    answer = await world.get(f"{LOGS}?{query}")
    assert answer.status_code == code
    assert why in answer.json()["detail"]


@pytest.mark.parametrize("follow", ["", "?follow=true"])
@pytest.mark.parametrize(("upstream", "code"), [(400, 409), (404, 404)])
async def test_a_log_that_cannot_be_read_is_told_before_the_answer_begins(
    world: World, logs: list[Request], follow: str, upstream: int, code: int
) -> None:
    world.fake.streams.clear()
    world.fake.hooks.insert(
        0, lambda request: (upstream, status(upstream, "", "waiting")) if request.path.endswith("/log") else None
    )
    answer = await world.get(f"{LOGS}{follow}")
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/problem+json")


async def test_logs_need_the_right_to_read_logs(world: World, logs: list[Request]) -> None:
    world.denied = "pods"
    answer = await world.get(LOGS)
    assert answer.status_code == 403
    assert "may not get pods/log in namespace 'team'" in answer.json()["detail"]
    assert logs == []


def test_ranks_are_places_in_the_gang() -> None:
    pods: list[dict[str, Any]] = [MASTER, worker(0), worker(2), {"metadata": {}}]
    assert [rank_of(pod) for pod in pods] == [0, 1, 3, 0]
    indexed = {"metadata": {"annotations": {"batch.kubernetes.io/job-completion-index": "4"}}}
    assert rank_of(indexed) == 4
