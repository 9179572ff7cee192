# SPDX-License-Identifier: Apache-2.0
"""Puts the server together: routes, error answers, the log line and figures of each request."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinema_kube import Kube
from kinema_kube.errors import KubeError
from kinema_server import metrics, posts, probes, reads
from kinema_server.refusal import Refusal, status_object, unavailable
from kinema_server.services import Services
from kinema_server.settings import ServerSettings
from kinema_server.verdicts import Verdicts
from kinema_server.writer import Writer

logger = logging.getLogger(__name__)


def create_app(settings: ServerSettings, connect: Callable[[], AbstractAsyncContextManager[Kube]]) -> FastAPI:
    """The application.

    Args:
        settings: how it runs.
        connect: opens the connection to the cluster, which lives as long as the application.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with connect() as kube:
            writer = Writer(kube, interval=settings.progress_interval_seconds)
            app.state.services = Services(
                kube=kube, writer=writer, verdicts=Verdicts(lifetime=settings.verdict_seconds)
            )
            try:
                yield
            finally:
                await writer.close()

    # No pages of documentation: nothing but probes is answered without a token.
    app = FastAPI(title="Kinema", lifespan=lifespan, openapi_url=None)
    for module in (posts, reads, probes):
        app.include_router(module.router)
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(KubeError, _on_kube_error)
    app.add_exception_handler(Exception, _on_fault)
    app.add_middleware(Observer)
    return app


class Observer:
    """Logs and counts each request, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        code = int(HTTPStatus.INTERNAL_SERVER_ERROR)

        async def observed(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            _record(scope, code=code, seconds=time.perf_counter() - started)


def _record(scope: Scope, *, code: int, seconds: float) -> None:
    # The template and not the path: a label of each job would never be forgotten.
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if route != "unmatched" else "any"
    metrics.REQUESTS.labels(method=method, route=route, code=str(code)).inc()
    metrics.SECONDS.labels(method=method, route=route).observe(seconds)
    level = logging.DEBUG if code < HTTPStatus.BAD_REQUEST else logging.INFO
    client = scope.get("client") or ("", 0)
    logger.log(
        level,
        "request",
        extra={
            "method": scope["method"],
            "path": scope["path"],
            "code": code,
            "seconds": round(seconds, 4),
            "client": client[0],
        },
    )


def _answer(code: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(status_object(code, message), status_code=code, headers=headers)


async def _on_refusal(_: Request, error: Any) -> JSONResponse:
    return _answer(error.code, error.message, error.headers)


async def _on_http_exception(_: Request, error: Any) -> JSONResponse:
    return _answer(error.status_code, str(error.detail), dict(error.headers or {}))


async def _on_invalid_request(request: Request, error: Any) -> JSONResponse:
    faults = error.errors()
    if any(fault["loc"][0] == "path" for fault in faults):
        return _answer(HTTPStatus.NOT_FOUND, f"nothing is served at {request.url.path}")
    text = "; ".join(f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in faults)
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, text)


async def _on_kube_error(request: Request, error: Any) -> JSONResponse:
    # What the API server said may name accounts and rules: it goes to the log.
    logger.error("request to the Kubernetes API failed", extra={"path": request.url.path, "error": str(error)})
    refusal = unavailable("the Kubernetes API did not do what the server asked of it; try again")
    return _answer(refusal.code, refusal.message, refusal.headers)


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    logger.error("fault", exc_info=error, extra={"path": request.url.path})
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log says more")
