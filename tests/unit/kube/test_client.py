# SPDX-License-Identifier: Apache-2.0
"""What the client sends, and what it makes of answers that a real API server seldom gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client.configuration import Configuration

from kinema_kube import Kube, Resource
from kinema_kube.connect import NoClusterError, loader
from kinema_kube.errors import (
    ForbiddenError,
    GoneError,
    KubeError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
)
from kinema_kube.resources import JOBS, PODS, TRAINING_POOLS, VIDEO_TRAINING_JOBS

from tests.unit.kube.fake import Answer, FakeKube, Request, status

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

PATHS: list[tuple[Resource, dict[str, Any], str]] = [
    (PODS, {}, "/api/v1/pods"),
    (PODS, {"namespace": "a", "name": "b"}, "/api/v1/namespaces/a/pods/b"),
    (JOBS, {"namespace": "a"}, "/apis/batch/v1/namespaces/a/jobs"),
    (TRAINING_POOLS, {"name": "cpu"}, "/apis/kinema.dev/v1alpha1/trainingpools/cpu"),
    (
        VIDEO_TRAINING_JOBS,
        {"namespace": "a", "name": "b", "subresource": "status"},
        "/apis/kinema.dev/v1alpha1/namespaces/a/videotrainingjobs/b/status",
    ),
    (PODS, {"namespace": "a/../b", "name": "c"}, "/api/v1/namespaces/a%2F..%2Fb/pods/c"),
]


@pytest.mark.parametrize(("resource", "where", "path"), PATHS)
def test_paths(resource: Resource, where: dict[str, Any], path: str) -> None:
    assert resource.path(**where) == path


@pytest.mark.parametrize(
    ("resource", "where"),
    [
        (PODS, {"name": "b"}),
        (TRAINING_POOLS, {"namespace": "a", "name": "b"}),
        (PODS, {"namespace": "..", "name": "b"}),
        (PODS, {"namespace": "a", "name": "."}),
        (PODS, {"namespace": "", "name": "b"}),
    ],
)
def test_paths_that_would_name_something_else_are_refused(resource: Resource, where: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=resource.plural):
        resource.path(**where)


ANSWERS: list[tuple[Answer, type[KubeError], float | None]] = [
    ((403, status(403, "Forbidden", "no")), ForbiddenError, None),
    ((429, status(429, "TooManyRequests", "no"), {"Retry-After": "7"}), TooManyRequestsError, 7),
    ((429, status(429, "TooManyRequests", "no", details={"retryAfterSeconds": 3})), TooManyRequestsError, 3),
    ((500, status(500, "InternalError", "no")), ServerError, None),
    ((503, {}, {"Retry-After": "Fri, 20 Nov 2026 10:00:00 GMT"}), ServerError, None),
    ((418, {}), KubeError, None),
]


@pytest.mark.parametrize(("answer", "kind", "retry_after"), ANSWERS)
async def test_errors_are_typed(
    fake: FakeKube, answer: Answer, kind: type[KubeError], retry_after: float | None
) -> None:
    fake.hooks.append(lambda request: answer)
    with pytest.raises(KubeError) as caught:
        await fake.kube.get(PODS, "p", namespace="n")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.retry_after) == (answer[0], retry_after)
    assert str(caught.value)


async def test_no_answer_is_an_error_of_its_own() -> None:
    kube = Kube(Configuration(host="http://127.0.0.1:1"))
    try:
        with pytest.raises(UnreachableError, match=r"GET /api/v1/namespaces/n/pods/p"):
            await kube.get(PODS, "p", namespace="n")
    finally:
        await kube.close()


async def test_a_list_whose_token_grew_too_old_is_read_again_whole(fake: FakeKube) -> None:
    pods = [{"metadata": {"name": name}} for name in "abc"]

    def pages(request: Request) -> Answer:
        if request.query.get("continue"):
            return 410, status(410, "Expired", "too old")
        if request.query.get("limit"):
            return 200, {"metadata": {"continue": "more"}, "items": pods[:2]}
        return 200, {"metadata": {}, "items": pods}

    fake.hooks.append(pages)
    listed = await fake.kube.list(PODS, namespace="n")
    assert [pod["metadata"]["name"] for pod in listed] == ["a", "b", "c"]
    with pytest.raises(GoneError):
        await fake.kube.page(PODS, namespace="n", token="more")


async def test_apply_says_whose_fields_they_are(fake: FakeKube) -> None:
    fake.put("/api/v1/namespaces/n/pods/p", {})
    await fake.kube.apply(PODS, {"metadata": {"name": "p", "namespace": "n"}}, manager="me", force=True)
    (request,) = fake.sent("PATCH")
    assert request.query == {"fieldManager": "me", "force": "true", "fieldValidation": "Strict"}
    assert request.headers["content-type"] == "application/apply-patch+yaml"
    assert (request.body["apiVersion"], request.body["kind"]) == ("v1", "Pod")


async def test_delete_names_what_it_means(fake: FakeKube) -> None:
    fake.put("/api/v1/namespaces/n/pods/p", {})
    await fake.kube.delete(PODS, "p", namespace="n", propagation="Foreground", uid="u")
    (request,) = fake.sent("DELETE")
    assert request.body["propagationPolicy"] == "Foreground"
    assert request.body["preconditions"] == {"uid": "u"}


async def test_a_fence_stands_before_every_change_and_before_no_look(fake: FakeKube) -> None:
    fake.put("/api/v1/namespaces/n/pods/p", {})

    def closed() -> None:
        raise PermissionError("closed")

    fenced = fake.kube.fenced(closed)
    assert await fenced.get(PODS, "p", namespace="n")
    pod = {"metadata": {"name": "p", "namespace": "n"}}
    for change in (
        fenced.create(PODS, pod),
        fenced.apply(PODS, pod, manager="me"),
        fenced.merge_patch(PODS, "p", {}, namespace="n"),
        fenced.delete(PODS, "p", namespace="n"),
    ):
        with pytest.raises(PermissionError):
            await change
    assert [request.method for request in fake.requests] == ["GET"]
    await fake.kube.delete(PODS, "p", namespace="n")
    assert len(fake.sent("DELETE")) == 1


async def test_refused_credentials_are_read_again_but_not_all_the_time(fake: FakeKube) -> None:
    reads = 0

    async def reload(configuration: Configuration) -> None:
        nonlocal reads
        reads += 1
        configuration.api_key["BearerToken"] = "Bearer new"

    fake.put("/api/v1/namespaces/n/pods/p", {})
    accepted = {"Bearer new"}

    def guard(request: Request) -> Answer | None:
        if request.headers.get("authorization") in accepted:
            return None
        return 401, status(401, "Unauthorized", "Unauthorized")

    fake.hooks.append(guard)
    kube = Kube(fake.kube.api.configuration, reload=reload)
    try:
        assert await kube.get(PODS, "p", namespace="n")
        accepted.clear()
        with pytest.raises(UnauthorizedError):
            await kube.get(PODS, "p", namespace="n")
    finally:
        await kube.close()
    assert reads == 1


def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoClusterError, match=r"no kubeconfig at .*/absent"):
        loader(kubeconfig=tmp_path / "absent")
