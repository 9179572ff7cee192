# SPDX-License-Identifier: Apache-2.0
"""Runs the application over HTTPS until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from prometheus_client import start_http_server

from kinema_kube import connect
from kinema_server.app import create_app
from kinema_server.certificate import Certificate
from kinema_server.services import Services
from kinema_server.settings import ServerSettings

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Tells what goes on for long to end before it waits for requests under way."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI):
            services: Services = app.state.services
            services.closing.set()
            await services.feeds.close()
        await super().shutdown(sockets)


def make_server(settings: ServerSettings, *, app: FastAPI, certificate: Certificate) -> uvicorn.Server:
    """The HTTPS server of an application, not yet started."""

    def context(_config: uvicorn.Config, _default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        return certificate.context

    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ssl_context_factory=context,
            timeout_graceful_shutdown=settings.shutdown_seconds,
            timeout_keep_alive=75,
            limit_concurrency=1000,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
        )
    )


async def serve(settings: ServerSettings) -> bool:
    """Serve until SIGTERM; False when the server could not start.

    Raises:
        CertificateError: there is no certificate to start with.
    """
    certificate = Certificate(certificate=settings.certificate, key=settings.key)
    app = create_app(settings, lambda: connect(kubeconfig=settings.kubeconfig))
    server = make_server(settings, app=app, certificate=certificate)
    if settings.metrics_port:
        start_http_server(settings.metrics_port)
    # uvicorn stops gracefully, then raises the signal again for whoever had a handler: an end that was asked for is no
    # failure of the process.
    signal.signal(signal.SIGTERM, _asked_to_stop)
    following = asyncio.create_task(certificate.follow(interval=settings.certificate_check_seconds))
    try:
        await server.serve()
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    logger.info("stopped")
    return server.started


def _asked_to_stop(_signal: int, _frame: FrameType | None) -> None:
    """Uvicorn's own handler is in place while the server runs."""
