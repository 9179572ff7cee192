# SPDX-License-Identifier: Apache-2.0
"""The server's answers, over real HTTPS."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from kinema_api.names import ANNOTATION_PROFILE, HEADER_PROFILE, HEADER_TOKEN
from kinema_operator import tls
from kinema_server.settings import ServerSettings

from tests.unit.kube.fake import status
from tests.unit.server.conftest import CHILD, JOB, POD, POST, World, owner, put_certificate, trusting

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

READ = "/v1alpha1/namespaces/team/videotrainingjobs"


async def test_a_post_is_echoed_and_applied(world: World) -> None:
    body = {"trainerStatus": {"progressPercentage": 7, "unknown": True}, "unknown": {}}
    answer = await world.post(body)
    assert (answer.status_code, answer.json()) == (200, body)
    assert world.progress is not None
    assert world.progress["percent"] == "7%"
    (patch,) = world.fake.sent("PATCH")
    assert patch.path == f"{JOB}/status"
    assert patch.query["fieldManager"] == "kinema-server"
    assert list(patch.body["status"]) == ["progress"]


@pytest.mark.parametrize(
    ("wish", "passed"), [("steps=3", "steps=3"), ("steps=3\r\nevil: 1", None), ("é", None), ("", None), (None, None)]
)
async def test_a_wish_to_profile_is_passed_on_with_the_answer(
    world: World, wish: str | None, passed: str | None
) -> None:
    if wish is not None:
        world.fake.objects[JOB]["metadata"]["annotations"] = {ANNOTATION_PROFILE: wish}
    for percentage in (7, 8):
        answer = await world.post({"trainerStatus": {"progressPercentage": percentage}})
        assert (answer.status_code, answer.headers.get(HEADER_PROFILE)) == (200, passed)


async def test_a_verified_token_is_not_reviewed_again(world: World) -> None:
    for _ in range(3):
        assert (await world.post()).status_code == 200
    assert len(world.fake.sent("POST", "tokenreviews")) == 1
    other = POST.replace("features", "convert")
    assert (await world.post(path=other)).status_code == 403
    assert len(world.fake.sent("POST", "tokenreviews")) == 1


REVIEWS: dict[str, tuple[int, dict[str, Any]]] = {
    "not authenticated": (401, {"authenticated": False}),
    "an API server that knows no audiences": (401, {"audiences": None}),
    "another audience": (401, {"audiences": ["vault"]}),
    "a person": (403, {"user": {"username": "mary"}}),
    "an account of another namespace": (403, {"user": {"username": "system:serviceaccount:other:default"}}),
    "an account that is no account": (403, {"user": {"username": "system:serviceaccount:team"}}),
    "no pod": (403, {"user": {"username": "system:serviceaccount:team:default"}}),
}


@pytest.mark.parametrize("case", REVIEWS)
async def test_reviews_that_do_not_name_the_pod_are_refused(world: World, case: str) -> None:
    code, changes = REVIEWS[case]
    world.reviews["bad"] = world.review(**changes)
    answer = await world.post(token="bad")
    assert (answer.status_code, answer.json()["status"]) == (code, code)
    assert world.progress is None


async def test_a_new_pod_of_the_old_ones_name_is_another(world: World) -> None:
    world.fake.objects[POD]["metadata"]["uid"] = str(uuid.uuid4())
    assert (await world.post()).status_code == 403


async def test_a_new_child_of_the_old_ones_name_is_another(world: World) -> None:
    world.fake.objects[CHILD]["metadata"]["uid"] = str(uuid.uuid4())
    assert (await world.post()).status_code == 403


async def test_a_new_job_of_the_old_ones_name_is_another(world: World) -> None:
    world.fake.objects[JOB]["metadata"]["uid"] = str(uuid.uuid4())
    answer = await world.post()
    assert answer.status_code == 403
    assert "earlier" in answer.json()["detail"]
    del world.fake.objects[JOB]
    assert (await world.post()).status_code == 404


async def test_a_pod_that_only_bears_the_owner_without_being_controlled_is_refused(world: World) -> None:
    world.fake.objects[POD]["metadata"]["ownerReferences"][0]["controller"] = False
    assert (await world.post()).status_code == 403


async def test_a_child_of_another_kind_is_refused(world: World) -> None:
    child = world.fake.objects[CHILD]
    world.fake.objects[POD]["metadata"]["ownerReferences"] = owner("apps/v1", "ReplicaSet", child)
    assert (await world.post()).status_code == 403


async def test_a_job_of_another_group_is_refused(world: World) -> None:
    job = world.fake.objects[JOB]
    world.fake.objects[CHILD]["metadata"]["ownerReferences"] = owner("example.com/v1", "VideoTrainingJob", job)
    assert (await world.post()).status_code == 403


@pytest.mark.parametrize("header", ["", "Basic abc", "Bearer", f"Bearer {'x' * 20000}"])
async def test_without_a_bearer_token_nothing_is_asked(world: World, header: str) -> None:
    headers = {"Authorization": header} if header else {}
    for answer in (await world.client.post(POST, headers=headers), await world.client.get(READ, headers=headers)):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert world.fake.requests == []


async def test_a_token_may_come_through_the_api_servers_proxy(world: World) -> None:
    answer = await world.client.get(f"{READ}/wan", headers={HEADER_TOKEN: "good"})
    assert answer.status_code == 200
    headers = {HEADER_TOKEN: "good", "Authorization": "Bearer bad"}
    assert (await world.client.get(f"{READ}/wan", headers=headers)).status_code == 401


async def test_who_sends_ten_mebibytes_hears_why_they_are_refused(world: World) -> None:
    for _ in range(3):
        answer = await world.post(content=b" " * (10 << 20))
        assert (answer.status_code, answer.json()["reason"]) == (413, "RequestEntityTooLarge")
    assert (await world.post()).status_code == 200


async def test_a_body_without_a_length_is_limited_too(world: World) -> None:
    async def chunks() -> Any:
        for _ in range(70):
            yield b" " * 1024

    answer = await world.client.post(POST, content=chunks(), headers={"Authorization": "Bearer good"})
    assert (answer.status_code, answer.json()["reason"]) == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 400),
        (b"\xff", 400),
        (b'{"trainerStatus": ', 400),
        (b"[]", 422),
        (b'{"trainerStatus": {"progressPercentage": "7"}}', 422),
        (b"9" * 5000, 400),
    ],
)
async def test_a_body_that_is_no_progress_is_refused(world: World, body: bytes, code: int) -> None:
    answer = await world.post(content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/problem+json")


@pytest.mark.parametrize(
    "path",
    [
        POST.replace("features", "posttrain"),
        POST.replace("/1/", "/0/"),
        POST.replace("/1/", "/first/"),
        POST.replace("team", "te%2E%2Eam%5F"),
        "/v1alpha1/namespaces/%2e%2e/videotrainingjobs",
        "/v1",
    ],
)
async def test_paths_that_are_not_served(world: World, path: str) -> None:
    answer = await world.post(path=path) if "progress" in path else await world.get(path)
    assert (answer.status_code, answer.json()["reason"]) == (404, "NotFound")
    assert [request.path for request in world.fake.requests if "reviews" not in request.path] == []


async def test_a_method_that_is_not_served(world: World) -> None:
    answer = await world.client.delete(READ)
    assert (answer.status_code, answer.json()["reason"]) == (405, "MethodNotAllowed")


async def test_what_the_api_server_says_stays_inside(world: World) -> None:
    world.fake.hooks.insert(0, lambda request: (500, status(500, "InternalError", "etcd at 10.1.2.3")))
    for answer in (await world.post(), await world.get(READ)):
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "10.1.2.3" not in answer.text


async def test_a_fault_says_no_more_than_that_it_is_one(world: World) -> None:
    world.fake.hooks.insert(0, lambda request: (200, {"items": [{"secret": "internals"}]}))
    world.fake.hooks.insert(0, lambda request: (201, {"status": world.review(allowed=True)}) if request.body else None)
    answer = await world.get(READ)
    assert (answer.status_code, answer.json()["reason"]) == (500, "InternalError")
    assert "internals" not in answer.text


async def test_who_may_not_read_is_told_what_is_missing(world: World) -> None:
    world.allowed = False
    answer = await world.get(f"{READ}/wan")
    assert answer.status_code == 403
    expected = "user 'system:serviceaccount:team:default' may not get videotrainingjobs.kinema.dev 'wan'"
    assert answer.json()["detail"] == f"{expected} in namespace 'team'"
    (review,) = world.fake.sent("POST", "subjectaccessreviews")
    assert review.body["spec"]["groups"] == ["g"]
    assert review.body["spec"]["resourceAttributes"] == {
        "group": "kinema.dev",
        "version": "v1alpha1",
        "resource": "videotrainingjobs",
        "verb": "get",
        "namespace": "team",
        "name": "wan",
    }
    assert world.fake.sent("GET") == []


async def test_readiness_follows_the_api_server(world: World) -> None:
    world.fake.put("/version", {"gitVersion": "v1.36.0"})
    assert (await world.client.get("/readyz")).status_code == 200
    del world.fake.objects["/version"]
    assert (await world.client.get("/readyz")).status_code == 503
    assert (await world.client.get("/healthz")).status_code == 200


async def test_a_new_certificate_is_served_by_the_same_listener(world: World, settings: ServerSettings) -> None:
    assert (await world.client.get("/healthz")).status_code == 200
    renewed = tls.make_ca(now=datetime.now(UTC))
    put_certificate(settings.certificate.parent, renewed)
    url = world.client.base_url.join("/healthz")
    async with asyncio.timeout(10), httpx.AsyncClient(verify=trusting(renewed)) as client:
        while True:
            try:
                answer = await client.get(url)
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.02)
    assert answer.status_code == 200
    # The connection that was open all the while goes on.
    assert (await world.client.get("/healthz")).status_code == 200
