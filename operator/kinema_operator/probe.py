# SPDX-License-Identifier: Apache-2.0
"""Answers the kubelet and Prometheus over HTTP.

Served by the loop that does the work, so that a blocked loop fails the probe.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Trouble = Callable[[], list[str]]


class Health:
    """What is wrong, asked of everybody who can tell."""

    def __init__(self) -> None:
        self.ready = False
        """Whether this replica does what it should: it leads with a full store, or it stands by."""
        self._checks: list[Trouble] = []

    def stand_by(self, able: bool) -> None:
        """This replica waits for the Lease, and could take it."""
        self.ready = able

    def watch(self, *checks: Trouble) -> None:
        """Ask these too."""
        self._checks.extend(checks)

    def troubles(self) -> list[str]:
        """Everything that is wrong; nobody can mend it but a restart."""
        return [trouble for check in self._checks for trouble in check()]


async def _healthz(request: web.Request) -> web.Response:
    troubles = request.app[HEALTH].troubles()
    return web.Response(status=500 if troubles else 200, text="\n".join(troubles or ["ok"]) + "\n")


async def _readyz(request: web.Request) -> web.Response:
    health = request.app[HEALTH]
    ready = health.ready and not health.troubles()
    return web.Response(status=200 if ready else 503, text="ok\n" if ready else "starting\n")


async def _metrics(request: web.Request) -> web.Response:
    encode, kind = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(request.app[REGISTRY]), headers={"Content-Type": kind})


HEALTH = web.AppKey("health", Health)
REGISTRY = web.AppKey("registry", CollectorRegistry)


@asynccontextmanager
async def serve(
    *, health: Health, registry: CollectorRegistry, probe_port: int, metrics_port: int, host: str | None = None
) -> AsyncIterator[tuple[int, int]]:
    """Answer /healthz and /readyz on one port and /metrics on the other; yields the ports that were taken.

    Args:
        health: whom to ask.
        registry: what to show.
        probe_port: of the probes; 0 takes a free one.
        metrics_port: of the metrics; 0 takes a free one.
        host: the address to listen on; every one when left out.
    """
    probes = web.Application()
    probes[HEALTH] = health
    probes.add_routes([web.get("/healthz", _healthz), web.get("/readyz", _readyz)])
    metrics = web.Application()
    metrics[REGISTRY] = registry
    metrics.add_routes([web.get("/metrics", _metrics)])
    runners = [web.AppRunner(app, access_log=None) for app in (probes, metrics)]
    try:
        ports = []
        for runner, port in zip(runners, (probe_port, metrics_port), strict=True):
            await runner.setup()
            await web.TCPSite(runner, host, port).start()
            ports.append(int(runner.addresses[0][1]))
        yield ports[0], ports[1]
    finally:
        for runner in runners:
            await runner.cleanup()
