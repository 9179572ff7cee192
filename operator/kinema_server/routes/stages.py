# SPDX-License-Identifier: Apache-2.0
"""GET .../{name}/stages: where each stage of a job stands."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from kinema_api.base import Model
from kinema_api.names import VERSION
from kinema_api.status import StageStatus
from kinema_server import examples
from kinema_server.access import on_job
from kinema_server.lookup import find_job, status_of
from kinema_server.problems import documented
from kinema_server.services import JobName, Namespace, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["jobs"])


class StageList(Model):
    """The stages of a job."""

    items: list[StageStatus]
    """In the order in which they run; empty before the operator has looked at the job."""


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}/stages",
    response_model=StageList,
    dependencies=[Depends(on_job("get"))],
    responses={**documented(), 200: {"content": {"application/json": {"example": examples.STAGES}}}},
)
async def get_stages(shared: Shared, namespace: Namespace, name: JobName) -> JSONResponse:
    """Where each stage of a job stands, with its attempts."""
    job = await find_job(shared.kube, namespace=namespace, name=name)
    return JSONResponse({"items": status_of(job).get("stages") or []})
