# SPDX-License-Identifier: Apache-2.0
"""Puts the server together: routes, error answers, what stands before them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from kinema_kube import Kube
from kinema_kube.errors import KubeError
from kinema_server.description import describe
from kinema_server.feeds import Feeds
from kinema_server.gate import Gate
from kinema_server.limits import Limiter
from kinema_server.observer import Observer
from kinema_server.problems import answer
from kinema_server.readers import Readers
from kinema_server.refusal import Refusal, unavailable
from kinema_server.reviews import Reviews
from kinema_server.routes import ROUTERS
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
            services = app.state.services = _services(settings, kube)
            try:
                yield
            finally:
                services.closing.set()
                await services.feeds.close()
                await services.readers.close()
                await services.writer.close()

    # No pages of documentation: nothing but probes is answered without a token.
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(KubeError, _on_kube_error)
    app.add_exception_handler(Exception, _on_fault)
    app.add_middleware(Observer)
    # The last one added stands first.
    limiter = Limiter(rate=settings.progress_per_second, burst=settings.progress_burst)
    app.add_middleware(Gate, limiter=limiter)
    return app


def _services(settings: ServerSettings, kube: Kube) -> Services:
    return Services(
        settings=settings,
        kube=kube,
        writer=Writer(kube, interval=settings.progress_interval_seconds),
        verdicts=Verdicts(lifetime=settings.verdict_seconds),
        reviews=Reviews(kube, seconds=settings.review_seconds),
        feeds=Feeds(kube),
        readers=Readers(
            kube,
            key=settings.key,
            idle_seconds=settings.reader_idle_seconds,
            wait_seconds=settings.reader_wait_seconds,
        ),
    )


async def _on_refusal(request: Request, error: Any) -> Response:
    return answer(error.code, error.message, path=request.url.path, headers=error.headers)


async def _on_http_exception(request: Request, error: Any) -> Response:
    path = request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        return answer(error.status_code, f"nothing is served at {path}", path=path)
    return answer(error.status_code, str(error.detail), path=path, headers=error.headers)


async def _on_invalid_request(request: Request, error: Any) -> Response:
    faults, path = error.errors(), request.url.path
    if any(fault["loc"][0] == "path" for fault in faults):
        return answer(HTTPStatus.NOT_FOUND, f"nothing is served at {path}", path=path)
    text = "; ".join(f"{'.'.join(map(str, fault['loc'][1:])) or fault['loc'][0]}: {fault['msg']}" for fault in faults)
    return answer(HTTPStatus.UNPROCESSABLE_ENTITY, text, path=path)


async def _on_kube_error(request: Request, error: Any) -> Response:
    # What the API server said may name accounts and rules: it goes to the log.
    logger.error("request to the Kubernetes API failed", extra={"path": request.url.path, "error": str(error)})
    refusal = unavailable("the Kubernetes API did not do what the server asked of it; try again")
    return answer(refusal.code, refusal.message, path=request.url.path, headers=refusal.headers)


async def _on_fault(request: Request, error: Exception) -> Response:
    logger.error("fault", exc_info=error, extra={"path": request.url.path})
    return answer(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log says more", path=request.url.path)
