# SPDX-License-Identifier: Apache-2.0
"""One module a route, or two that belong together; found by name."""

from fastapi import APIRouter

from kinema_server.routes import (
    actions,
    artifacts,
    diagnosis,
    events,
    history,
    jobs,
    logs,
    openapi,
    plans,
    posts,
    probes,
    progress,
    samples,
    stages,
)

ROUTERS: tuple[APIRouter, ...] = tuple(
    module.router
    for module in (
        jobs,
        stages,
        progress,
        artifacts,
        diagnosis,
        events,
        logs,
        history,
        samples,
        actions,
        plans,
        posts,
        openapi,
        probes,
    )
)
