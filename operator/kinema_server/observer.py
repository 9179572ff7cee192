# SPDX-License-Identifier: Apache-2.0
"""The log line and the figures of each request, and the headers of each answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinema_server import metrics

logger = logging.getLogger(__name__)

HEADERS: Mapping[str, str] = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of every answer that does not say otherwise."""


class Observer:
    """Logs and counts each request, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        code, streams = int(HTTPStatus.INTERNAL_SERVER_ERROR), False

        async def observed(message: Message) -> None:
            nonlocal code, streams
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                streams = headers.get("Content-Type", "").startswith("text/event-stream")
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            _record(scope, code=code, seconds=time.perf_counter() - started, streams=streams)


def _record(scope: Scope, *, code: int, seconds: float, streams: bool) -> None:
    # The template and not the path: a label of each job would never be forgotten.
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if route != "unmatched" else "any"
    metrics.REQUESTS.labels(method=method, route=route, code=str(code)).inc()
    if not streams:
        # How long somebody watches says nothing about how quick the server is.
        metrics.SECONDS.labels(method=method, route=route).observe(seconds)
    level = logging.DEBUG if code < HTTPStatus.BAD_REQUEST else logging.INFO
    logger.log(
        level,
        "request",
        extra={
            "method": scope["method"],
            "path": scope["path"],
            "code": code,
            "seconds": round(seconds, 4),
            "client": client_of(scope),
        },
    )


def client_of(scope: Scope) -> str:
    """The address that a request came from."""
    host: str = (scope.get("client") or ("", 0))[0]
    return host
