# SPDX-License-Identifier: Apache-2.0
"""A few verbs of an API server, over real HTTP: what a test puts in is what requests find."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from kinema_kube import Kube

Answer = tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], dict[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class FakeKube:
    """Objects by path, and answers that come before them."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    hooks: list[Callable[[Request], Answer | None]] = field(default_factory=list)
    """The first that answers wins."""
    streams: list[Callable[[Request], AsyncIterator[bytes] | None]] = field(default_factory=list)
    """Answers that go on; the first that begins one wins."""
    kube: Kube = field(init=False)
    _version: int = 0

    def put(self, path: str, obj: dict[str, Any]) -> dict[str, Any]:
        """Store an object; it gets a uid and a resource version."""
        self._version += 1
        metadata = {"uid": str(uuid.uuid4()), **obj.get("metadata", {}), "resourceVersion": str(self._version)}
        self.objects[path] = {**obj, "metadata": metadata}
        return self.objects[path]

    def sent(self, method: str, part: str = "") -> list[Request]:
        """Requests of a method whose path holds `part`."""
        return [request for request in self.requests if request.method == method and part in request.path]

    async def handle(self, incoming: web.Request) -> web.StreamResponse:
        raw = await incoming.read()
        request = Request(
            method=incoming.method,
            path=incoming.path,
            query=dict(incoming.query),
            headers={key.lower(): value for key, value in incoming.headers.items()},
            body=json.loads(raw) if raw else {},
        )
        self.requests.append(request)
        for stream in self.streams:
            chunks = stream(request)
            if chunks is not None:
                return await _streamed(incoming, chunks)
        code, body, *headers = self._answer(request)
        return web.json_response(body, status=code, headers=headers[0] if headers else None)

    def _answer(self, request: Request) -> Answer:
        for hook in self.hooks:
            answer = hook(request)
            if answer is not None:
                return answer
        path = request.path.removesuffix("/status")
        if request.method == "POST":
            return 201, request.body
        found = self.objects.get(path)
        if found is None:
            return 404, status(404, "NotFound", f"{path} not found")
        if request.method == "PATCH":
            return self._patch(path, found, request.body)
        return 200, found

    def _patch(self, path: str, found: dict[str, Any], body: dict[str, Any]) -> Answer:
        version = body.get("metadata", {}).get("resourceVersion")
        if version and version != found["metadata"]["resourceVersion"]:
            return 409, status(409, "Conflict", "the object has been modified")
        spec = _merged(found.get("spec", {}), body.get("spec", {}))
        made = {**found, "status": {**found.get("status", {}), **body.get("status", {})}}
        return 200, self.put(path, {**made, "spec": spec} if spec else made)


def _merged(below: Any, over: Any) -> Any:
    """A merge patch (RFC 7396)."""
    if not isinstance(over, dict):
        return over
    base = below if isinstance(below, dict) else {}
    merged = {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return {key: value for key, value in merged.items() if value is not None}


async def _streamed(incoming: web.Request, chunks: AsyncIterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(incoming)
    async for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response


def status(code: int, reason: str, message: str, **more: Any) -> dict[str, Any]:
    """A Kubernetes Status."""
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, **more}


@asynccontextmanager
async def fake_kube() -> AsyncIterator[FakeKube]:
    """A fake that serves, and a client of it."""
    fake = FakeKube()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    async with TestServer(app) as server:
        configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
        fake.kube = Kube(configuration, request_timeout=5)
        try:
            yield fake
        finally:
            await fake.kube.close()
