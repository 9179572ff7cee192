# SPDX-License-Identifier: Apache-2.0
"""GET .../{name}/history: loss, throughput and other numbers over the steps of a training."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from kinema_api.names import VERSION
from kinema_api.reading import POINTS, SERIES, History
from kinema_server import examples
from kinema_server.access import on_job
from kinema_server.lookup import find_job
from kinema_server.problems import documented
from kinema_server.refusal import unavailable
from kinema_server.services import JobName, Namespace, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["workspace"])

Name = Enum("Name", {name: name for name in SERIES}, type=str)  # type: ignore[misc]


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}/history",
    response_model=History,
    dependencies=[Depends(on_job("get"))],
    responses={**documented(), 200: {"content": {"application/json": {"example": examples.HISTORY}}}},
)
async def get_history(
    shared: Shared,
    namespace: Namespace,
    name: JobName,
    points: Annotated[int, Query(ge=3, le=5000, description="Points of a series, at most.")] = POINTS,
    series: Annotated[list[Name] | None, Query(max_length=len(SERIES), description="All when left out.")] = None,
) -> Response:
    """Loss, throughput and other numbers over the steps of a training, few enough to draw.

    The job's workspace is read by a small pod with the job's account, which starts with the first request: until it has
    started, the answer is 503 with `Retry-After`.
    """
    job = await find_job(shared.kube, namespace=namespace, name=name)
    query = {"points": points, "series": [one.value for one in series or Name]}
    async with shared.readers.ask(job, "/history", query=query, headers={}) as answer:
        body = await answer.aread()
    if answer.status_code != HTTPStatus.OK:
        raise unavailable("the pod that reads the workspace is of another version; try again")
    return Response(body, media_type="application/json")
