# SPDX-License-Identifier: Apache-2.0
"""A proxy between one operator and the API server, which can answer in its place, be late, cut streams, and kill."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from kinema_cluster.control_plane import ControlPlane

_HOP = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "keep-alive"})
LATEST = 60.0
"""Seconds after which a request that is held goes on by itself."""

_NAMESPACE = re.compile(r"/namespaces/(team-[^/]+)/(.+)")


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the operator."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def changes(self) -> bool:
        return self.method != "GET"

    @property
    def lease(self) -> bool:
        return "/leases" in self.path

    @property
    def team(self) -> bool:
        """Whether it is about what lies in a team's namespace, not about the operator's own."""
        return bool(_NAMESPACE.search(self.path))

    @property
    def what(self) -> str:
        """In short, such as `POST jobs` or `PATCH videotrainingjobs/wan/status`."""
        found = _NAMESPACE.search(self.path)
        return f"{self.method} {found[2] if found else self.path}"


@dataclass(frozen=True, slots=True)
class Answer:
    """Say this in the API server's place, or after it has carried out the request."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    carried_out: bool = False


@dataclass(frozen=True, slots=True)
class Do:
    """Do something, before or after the API server carries out the request, and never answer."""

    action: Callable[[], None]
    carried_out: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the request until told to let it go on."""

    until: threading.Event


@dataclass(frozen=True, slots=True)
class Break:
    """End a watch after so many events: by a word of the API server, or in the middle of a line."""

    after: int
    last: bytes = b""


Fault = Answer | Do | Hold | Break
Plan = Callable[[Call], Fault | None]


def failure(status: int, reason: str, message: str, **details: Any) -> dict[str, Any]:
    """A Status as the API server sends it."""
    kind = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure"}
    return {**kind, "code": status, "reason": reason, "message": message, "details": details}


GONE = failure(410, "Expired", "too old resource version: 1 (2)")
GONE_EVENT = json.dumps({"type": "ERROR", "object": GONE}).encode() + b"\n"


class Proxy:
    """Serves on a port of its own, in a thread of its own."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plan: Plan = lambda call: None
        """Asked about each call; what it answers is done."""
        self.seen: list[Call] = []
        self.port = 0
        self.errors: list[BaseException] = []
        """What went wrong in the proxy itself."""
        self._watches: set[asyncio.Transport] = set()
        self._upstream = plane.server.rstrip("/")
        self._ca = plane.layout.pki / "ca.crt"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def server(self) -> str:
        """The address for a kubeconfig."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._wait(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()
        assert self.errors == []

    def cut(self) -> None:
        """End every watch that is open."""

        def now() -> None:
            for transport in tuple(self._watches):
                transport.abort()

        self._loop.call_soon_threadsafe(now)

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _start(self) -> None:
        tls = ssl.create_default_context(cafile=str(self._ca))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls), timeout=aiohttp.ClientTimeout(total=None)
        )
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._guarded)
        # A dead operator's watches end with it.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = int(self._runner.addresses[0][1])

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _guarded(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._serve(request)
        except Exception as error:
            self.errors.append(error)
            raise

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        call = Call(request.method, request.path, dict(request.query), await request.read())
        self.seen.append(call)
        fault = self.plan(call)
        if isinstance(fault, Hold):
            await asyncio.to_thread(fault.until.wait, LATEST)
        if isinstance(fault, Do) and not fault.carried_out:
            return _silent(request, fault)
        if isinstance(fault, Answer) and not fault.carried_out:
            return _said(fault)
        try:
            async with self._forward(request, call) as answer:
                if call.watch and answer.status == 200:
                    return await self._watch(request, answer, fault if isinstance(fault, Break) else None)
                data = await answer.read()
        except OSError:
            # The operator is gone, or the API server.
            _cut(request)
            return web.Response(status=502)
        if isinstance(fault, Do):
            return _silent(request, fault)
        if isinstance(fault, Answer):
            return _said(fault)
        return web.Response(status=answer.status, body=data, headers=_kept(answer.headers))

    async def _watch(
        self, request: web.Request, answer: aiohttp.ClientResponse, broken: Break | None
    ) -> web.StreamResponse:
        assert request.transport is not None
        transport = request.transport
        self._watches.add(transport)
        try:
            return await _stream(request, answer, broken)
        finally:
            self._watches.discard(transport)

    def _forward(self, request: web.Request, call: Call) -> Any:
        return self._session.request(
            call.method,
            self._upstream + request.raw_path,
            data=call.body or None,
            headers={**_kept(request.headers), "Accept-Encoding": "identity"},
            allow_redirects=False,
        )


async def _stream(request: web.Request, answer: aiohttp.ClientResponse, broken: Break | None) -> web.StreamResponse:
    """Pass on a watch, event by event."""
    response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
    await response.prepare(request)
    passed = 0
    async for line in _lines(answer):
        if broken is not None and passed == broken.after:
            await response.write(broken.last or line[: len(line) // 2])
            if not broken.last:
                _cut(request)
            return response
        await response.write(line)
        passed += 1
    return response


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    held = b""
    async for chunk in answer.content.iter_any():
        *lines, held = (held + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _silent(request: web.Request, fault: Do) -> web.Response:
    fault.action()
    _cut(request)
    return web.Response(status=500)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _said(fault: Answer) -> web.Response:
    return web.json_response(fault.body, status=fault.status, headers=fault.headers)


def _kept(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP}
