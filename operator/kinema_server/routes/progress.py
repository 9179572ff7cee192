# SPDX-License-Identifier: Apache-2.0
"""GET .../{name}/progress: what the running stage of a job said last."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from kinema_api.base import Model
from kinema_api.names import VERSION, Stage
from kinema_api.status import Phase, Progress
from kinema_server import examples
from kinema_server.access import on_job
from kinema_server.lookup import find_job, status_of
from kinema_server.problems import documented
from kinema_server.rows import running_progress
from kinema_server.services import JobName, Namespace, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["jobs"])


class Standing(Model):
    """Where a job stands."""

    phase: Phase
    """As a whole."""
    stage: Stage | None
    """The stage that runs, or that the job ended in."""
    progress: Progress | None
    """What that stage said last; null before it has spoken."""


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}/progress",
    response_model=Standing,
    dependencies=[Depends(on_job("get"))],
    responses={**documented(), 200: {"content": {"application/json": {"example": examples.STANDING}}}},
)
async def get_progress(shared: Shared, namespace: Namespace, name: JobName) -> JSONResponse:
    """What the running stage of a job said last."""
    job = await find_job(shared.kube, namespace=namespace, name=name)
    status = status_of(job)
    return JSONResponse(
        {
            "phase": status.get("phase") or Phase.PENDING.value,
            "stage": status.get("stage"),
            "progress": running_progress(job),
        }
    )
