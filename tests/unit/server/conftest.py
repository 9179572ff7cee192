# SPDX-License-Identifier: Apache-2.0
"""The real server over real HTTPS, in front of a fake API server that holds one job and its pod."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from kinema_api.names import PROGRESS_AUDIENCE
from kinema_kube import Kube
from kinema_operator import tls
from kinema_server.app import create_app
from kinema_server.certificate import Certificate
from kinema_server.serve import make_server
from kinema_server.settings import ServerSettings

from tests.unit.kube.fake import Answer, FakeKube, Request, fake_kube

JOB = "/apis/kinema.dev/v1alpha1/namespaces/team/videotrainingjobs/wan"
CHILD = "/apis/batch/v1/namespaces/team/jobs/wan-features-1"
POD = "/api/v1/namespaces/team/pods/wan-features-1-x"
POST = "/v1alpha1/namespaces/team/videotrainingjobs/wan/stages/features/attempts/1/progress"


def owner(api_version: str, kind: str, obj: dict[str, Any]) -> list[dict[str, Any]]:
    metadata = obj["metadata"]
    reference = {"apiVersion": api_version, "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}
    return [{**reference, "controller": True}]


@dataclass
class World:
    """What the API server knows."""

    fake: FakeKube
    client: httpx.AsyncClient
    reviews: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The status of a TokenReview, by token."""
    allowed: bool = True
    denied: str = ""
    """A verb or a resource that nobody has a right to."""

    def __post_init__(self) -> None:
        job = self.fake.put(JOB, {"metadata": {"name": "wan", "namespace": "team"}})
        owners = owner("kinema.dev/v1alpha1", "VideoTrainingJob", job)
        metadata = {"name": "wan-features-1", "namespace": "team", "ownerReferences": owners}
        child = self.fake.put(CHILD, {"metadata": metadata})
        metadata = {"name": "wan-features-1-x", "namespace": "team", "ownerReferences": owner("batch/v1", "Job", child)}
        self.fake.put(POD, {"metadata": metadata})
        self.reviews["good"] = self.review()
        self.fake.hooks.append(self._answer)

    def review(self, **changes: Any) -> dict[str, Any]:
        """What a TokenReview says of the pod's own token, with changes."""
        extra = {
            "authentication.kubernetes.io/pod-name": ["wan-features-1-x"],
            "authentication.kubernetes.io/pod-uid": [self.fake.objects[POD]["metadata"]["uid"]],
        }
        user = {"username": "system:serviceaccount:team:default", "uid": "u", "groups": ["g"], "extra": extra}
        return {"authenticated": True, "audiences": [PROGRESS_AUDIENCE], "user": user, **changes}

    async def post(
        self, body: Any = None, *, token: str = "good", path: str = POST, content: bytes | None = None
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if content is not None:
            return await self.client.post(path, content=content, headers=headers)
        return await self.client.post(path, json=body or {}, headers=headers)

    async def get(self, path: str, *, token: str = "good") -> httpx.Response:
        return await self.client.get(path, headers={"Authorization": f"Bearer {token}"})

    @property
    def progress(self) -> dict[str, Any] | None:
        progress: dict[str, Any] | None = self.fake.objects[JOB].get("status", {}).get("progress")
        return progress

    def _answer(self, request: Request) -> Answer | None:
        spec = request.body.get("spec", {})
        if request.path.endswith("/tokenreviews"):
            return 201, {"status": self.reviews.get(spec["token"], {"authenticated": False})}
        if request.path.endswith("/subjectaccessreviews"):
            attributes = spec["resourceAttributes"]
            denied = self.denied in (attributes["verb"], attributes["resource"])
            return 201, {"status": {"allowed": self.allowed and not denied}}
        return None


def put_certificate(folder: Path, authority: tls.Pair) -> None:
    leaf = tls.make_leaf(authority, dns_names=["localhost"], now=datetime.now(UTC))
    (folder / "tls.crt").write_bytes(leaf.certificate)
    (folder / "tls.key").write_bytes(leaf.key)


def trusting(authority: tls.Pair) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


async def until(what: str, test: Callable[[], bool]) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(10):
            while True:
                if test():
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(what)


@asynccontextmanager
async def serving(settings: ServerSettings, kube: Kube) -> AsyncIterator[int]:
    """A running server; its port."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Kube]:
        yield kube

    certificate = Certificate(certificate=settings.certificate, key=settings.key)
    server = make_server(settings, app=create_app(settings, connect), certificate=certificate)
    following = asyncio.create_task(certificate.follow(interval=settings.certificate_check_seconds))
    running = asyncio.create_task(server.serve())
    await until("the server did not start", lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running
        following.cancel()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def authority() -> tls.Pair:
    return tls.make_ca(now=datetime.now(UTC))


@pytest.fixture
def settings(tmp_path: Path, authority: tls.Pair) -> ServerSettings:
    put_certificate(tmp_path, authority)
    return ServerSettings(
        host="127.0.0.1",
        port=0,
        certificate=tmp_path / "tls.crt",
        key=tmp_path / "tls.key",
        certificate_check_seconds=0.02,
        progress_interval_seconds=600,
    )


@pytest.fixture
async def world(settings: ServerSettings, authority: tls.Pair) -> AsyncIterator[World]:
    async with (
        fake_kube() as fake,
        serving(settings, fake.kube) as port,
        httpx.AsyncClient(base_url=f"https://localhost:{port}", verify=trusting(authority)) as client,
    ):
        yield World(fake=fake, client=client)
