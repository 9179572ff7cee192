# SPDX-License-Identifier: Apache-2.0
"""Reads of jobs: lists, one whole, and its parts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.kube.fake import Answer, Request, status
from tests.unit.server.conftest import JOB, World
from tests.unit.server.upstream import JOBS, job

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

READ = "/v1alpha1/namespaces/team/videotrainingjobs"
ONE = f"{READ}/wan"


async def test_a_list_passes_its_parameters_on_and_shows_rows(world: World) -> None:
    items = [job("wan", 5, phase="Running", stage="train"), job("cog", 6)]
    world.fake.objects[JOBS] = {"metadata": {"continue": "more", "remainingItemCount": 7}, "items": items}
    answer = await world.get(f"{READ}?limit=2&continue=x&labelSelector=team%3Dvideo&phase=Running")
    found = answer.json()
    assert (found["next"], found["remaining"]) == ("more", 7)
    assert [(row["name"], row["phase"], row["stage"]) for row in found["items"]] == [
        ("wan", "Running", "train"),
        ("cog", "Pending", None),
    ]
    (asked,) = world.fake.sent("GET")
    assert asked.query == {
        "limit": "2",
        "continue": "x",
        "labelSelector": "team=video",
        "fieldSelector": "status.phase=Running",
    }


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "phase=Sleeping", f"continue={'x' * 5000}"])
async def test_parameters_that_are_wrong_are_named(world: World, query: str) -> None:
    answer = await world.get(f"{READ}?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["detail"].startswith(query.partition("=")[0])


@pytest.mark.parametrize(("upstream", "code"), [(410, 410), (400, 400), (403, 403)])
async def test_what_the_api_server_refuses_of_a_list(world: World, upstream: int, code: int) -> None:
    def refuse(request: Request) -> Answer | None:
        return (upstream, status(upstream, "", "no")) if request.method == "GET" else None

    world.fake.hooks.insert(0, refuse)
    assert (await world.get(READ)).status_code == code


async def test_a_job_that_has_not_changed_is_not_sent_again(world: World) -> None:
    first = await world.get(ONE)
    tag = first.headers["etag"]
    assert first.json()["metadata"]["name"] == "wan"
    for known in (tag, f'"other", W/{tag}', "*"):
        again = await world.client.get(ONE, headers={"Authorization": "Bearer good", "If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    world.fake.put(JOB, world.fake.objects[JOB])
    changed = await world.client.get(ONE, headers={"Authorization": "Bearer good", "If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


async def test_every_error_is_a_problem(world: World) -> None:
    answer = await world.get(ONE.replace("wan", "absent"))
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is no VideoTrainingJob 'absent' in namespace 'team'",
        "instance": ONE.replace("wan", "absent"),
        "reason": "NotFound",
    }


ATTEMPTS = [
    {
        "number": 1,
        "child": "wan-train-1",
        "state": "Failed",
        "reason": "OutOfMemory",
        "finishedAt": "2026-11-22T10:00:00Z",
    },
    {"number": 2, "child": "wan-train-2", "state": "Failed", "exitCode": 137, "finishedAt": "2026-11-22T11:00:00Z"},
    {"number": 3, "child": "wan-train-3", "state": "Running"},
]
STATUS: dict[str, Any] = {
    "phase": "Running",
    "stage": "train",
    "message": "train runs",
    "diagnosis": "train failed twice",
    "workspace": "pvc://training/jobs/team/wan-1",
    "resolved": {"keys": {"features": "k1"}},
    "stages": [
        {"name": "features", "state": "Skipped", "reason": "ArtifactExists", "artifact": "pvc://a/features/k1"},
        {"name": "train", "state": "Running", "artifact": None, "attempts": ATTEMPTS},
    ],
}


async def test_parts_of_a_job(world: World) -> None:
    world.fake.objects[JOB]["status"] = STATUS
    assert (await world.get(f"{ONE}/stages")).json()["items"] == STATUS["stages"]
    artifacts = (await world.get(f"{ONE}/artifacts")).json()
    assert artifacts["workspace"] == STATUS["workspace"]
    assert artifacts["items"] == [
        {"stage": "features", "uri": "pvc://a/features/k1", "key": "k1", "reused": True, "counts": {}}
    ]
    diagnosis = (await world.get(f"{ONE}/diagnosis")).json()
    assert diagnosis["diagnosis"] == "train failed twice"
    assert [(failure["attempt"], failure["exitCode"]) for failure in diagnosis["failures"]] == [(2, 137), (1, None)]
    progress = (await world.get(f"{ONE}/progress")).json()
    assert progress == {"phase": "Running", "stage": "train", "progress": None}


async def test_parts_of_a_job_that_nobody_looked_at(world: World) -> None:
    assert (await world.get(f"{ONE}/stages")).json() == {"items": []}
    assert (await world.get(f"{ONE}/artifacts")).json() == {"workspace": None, "items": []}
    assert (await world.get(f"{ONE}/diagnosis")).json()["phase"] == "Pending"
    assert (await world.get(f"{ONE}/progress")).json()["phase"] == "Pending"


def event(name: str, *, at: str, uid: str = "", kind: str = "Pod") -> dict[str, Any]:
    about = {"kind": kind, "name": name, "uid": uid}
    return {"involvedObject": about, "reason": "Started", "message": name, "lastTimestamp": at, "metadata": {}}


async def test_events_of_a_job_its_children_and_their_pods(world: World) -> None:
    world.fake.objects[JOB]["status"] = STATUS
    uid = world.fake.objects[JOB]["metadata"]["uid"]
    world.fake.objects["/api/v1/namespaces/team/events"] = {
        "items": [
            event("wan", at="1", uid=uid, kind="VideoTrainingJob"),
            event("wan-train-1-master-0", at="3"),
            event("wan-train-2", at="2", kind="PyTorchJob"),
            event("wan-train-1x", at="4"),
            event("other-train-1-abc", at="5"),
        ]
    }
    found = (await world.get(f"{ONE}/events")).json()["items"]
    assert [item["object"] for item in found] == [
        "pod/wan-train-1-master-0",
        "pytorchjob/wan-train-2",
        "videotrainingjob/wan",
    ]
    world.denied = "events"
    # The job may be read, so that the refusal is of the events alone.
    world.reviews["other"] = world.review()
    answer = await world.get(f"{ONE}/events", token="other")
    assert "may not list events in namespace 'team'" in answer.json()["detail"]


async def test_the_description_is_for_those_who_have_a_token(world: World) -> None:
    assert (await world.get("/openapi.json", token="bad")).status_code == 401
    document = (await world.get("/openapi.json")).json()
    one = document["paths"][f"{READ.replace('team', '{namespace}')}/{{name}}"]["get"]
    assert {"watch", "Last-Event-ID"} <= {parameter["name"] for parameter in one["parameters"]}
    assert set(one["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["security"] == [{"bearer": []}], where
            assert "Problem" in str(operation["responses"]["403"]), where
            assert "example" in str(operation["responses"]["200"]["content"]), where
    assert "HTTPValidationError" not in document["components"]["schemas"]
