# SPDX-License-Identifier: Apache-2.0
"""Schemathesis over the whole description: nothing undocumented, no fault, nothing wrong that is accepted.

tests/slow/test_whole_contract.py does the same with more examples.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from aiohttp import web
from aiohttp.test_utils import TestServer
from schemathesis.config import SchemathesisConfig

from kinema_kube import Kube
from kinema_server import examples
from kinema_server.app import create_app
from kinema_server.reader_pod import ANNOTATION_DIGEST
from kinema_server.settings import ServerSettings

from tests.unit.kube.fake import Answer, Request, fake_kube
from tests.unit.server.conftest import JOB
from tests.unit.server.upstream import job

pytestmark = pytest.mark.unit

SEED = 20261122
AUTHORIZATION = {"Authorization": "Bearer good"}
REVIEW = {"authenticated": True, "audiences": ["progress.kinema.dev"], "user": {"username": "mary"}}
POD = {"metadata": {"name": "wan-train-1-master-0"}, "spec": {}}


def answer(request: Request) -> Answer | None:
    """Of an API server that holds one job in each namespace."""
    if request.path.endswith("/tokenreviews"):
        return 201, {"status": REVIEW if request.body["spec"]["token"] == "good" else {"authenticated": False}}
    if request.path.endswith("/subjectaccessreviews"):
        return 201, {"status": {"allowed": True}}
    kind = request.path.rpartition("/")[2]
    if request.method == "GET" and kind in ("videotrainingjobs", "pods", "events", "trainingpools"):
        items: dict[str, list[Any]] = {"videotrainingjobs": [whole()], "pods": [POD]}
        return 200, {"metadata": {"resourceVersion": "10"}, "items": items.get(kind, [])}
    return None


def whole() -> dict[str, Any]:
    attempt = {"number": 1, "child": "wan-train-1", "state": "Running", "startedAt": "2026-11-22T10:00:00Z"}
    stages = [{"name": "train", "state": "Running", "attempts": [attempt]}]
    return job("wan", 5, phase="Running", stage="train", stages=stages)


def stream(request: Request) -> AsyncIterator[bytes] | None:
    if request.query.get("watch") == "true" or request.path.endswith("/log"):
        return lines()
    return None


async def lines() -> AsyncIterator[bytes]:
    yield b""


async def read(request: web.Request) -> web.Response:
    """What a reader answers."""
    name = request.path.rpartition("/")[2]
    if name in ("history", "samples"):
        return web.json_response(examples.HISTORY if name == "history" else examples.SAMPLES)
    if name != "00-seed1.mp4":
        raise web.HTTPNotFound
    return web.Response(body=b"video", content_type="video/mp4")


def reader(port: int | None, key: Path) -> dict[str, Any]:
    """A pod that knows the server's token."""
    token = hmac.new(key.read_bytes(), b"kinema reader uid-wan", hashlib.sha256).hexdigest()
    digest = hashlib.sha256(token.encode()).hexdigest()
    return {
        "metadata": {"name": "wan-reader-uid-wan", "annotations": {ANNOTATION_DIGEST: digest}},
        "spec": {"containers": [{"name": "reader", "ports": [{"containerPort": port}]}]},
        "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }


KEY = Path(__file__)
"""Any file will do."""


@asynccontextmanager
async def connect() -> AsyncIterator[Kube]:
    reading = web.Application()
    reading.router.add_route("GET", "/{path:.*}", read)
    async with fake_kube() as fake, TestServer(reading) as server:
        fake.put("/api/v1/namespaces/team/pods/wan-reader-uid-wan", reader(server.port, KEY))
        fake.hooks.append(answer)
        fake.streams.append(stream)
        fake.put(JOB, whole())
        yield fake.kube


def described(*, examples: int) -> Any:
    settings = ServerSettings(
        stream_seconds=0.05, review_seconds=60, progress_burst=10_000, progress_per_second=1000, key=KEY
    )
    # The check of ignored tokens sends requests of its own.
    generation = {"with-security-parameters": False, "max-examples": examples, "database": "none"}
    config = SchemathesisConfig.from_dict({"seed": SEED, "generation": {**generation, "deterministic": True}})
    app = create_app(settings, connect)
    made = schemathesis.openapi.from_dict(app.openapi(), config=config)
    made.app = app
    return made


schema = described(examples=10)


@schema.parametrize()  # type: ignore[untyped-decorator]
def test_the_server_does_as_it_says(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(headers=AUTHORIZATION)
