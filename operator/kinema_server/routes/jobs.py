# SPDX-License-Identifier: Apache-2.0
"""GET .../videotrainingjobs and .../videotrainingjobs/{name}: jobs in short, and one whole."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import JSONResponse

from kinema_api.names import VERSION
from kinema_api.status import Phase
from kinema_kube.errors import BadRequestError, ForbiddenError, GoneError
from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_server import examples
from kinema_server.access import everywhere, in_namespace, on_job
from kinema_server.lookup import find_job
from kinema_server.problems import documented
from kinema_server.refusal import Refusal
from kinema_server.rows import Listing, Whole, listed, whole
from kinema_server.services import JobName, Namespace, Services, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["jobs"])

Limit = Annotated[int, Query(ge=1, le=500, description="Jobs of a page.")]
Continue = Annotated[str, Query(alias="continue", max_length=4096, description="`next` of the page before.")]
Selector = Annotated[
    str, Query(alias="labelSelector", max_length=4096, description="As kubectl's `-l`, for instance `team=video`.")
]
OnlyPhase = Annotated[Phase | None, Query(description="Only jobs of this phase.")]
_LISTS: dict[int | str, dict[str, Any]] = {
    **documented(HTTPStatus.BAD_REQUEST, HTTPStatus.GONE),
    200: {"content": {"application/json": {"example": examples.LISTING}}},
}


@router.get("/videotrainingjobs", responses=_LISTS, dependencies=[Depends(everywhere("list"))])
async def list_everywhere(
    shared: Shared, limit: Limit = 100, token: Continue = "", labels: Selector = "", phase: OnlyPhase = None
) -> Listing:
    """Jobs of all namespaces, a page at a time."""
    return await _listing(shared, namespace=None, limit=limit, token=token, labels=labels, phase=phase)


@router.get("/namespaces/{namespace}/videotrainingjobs", responses=_LISTS, dependencies=[Depends(in_namespace("list"))])
async def list_namespace(
    shared: Shared,
    namespace: Namespace,
    limit: Limit = 100,
    token: Continue = "",
    labels: Selector = "",
    phase: OnlyPhase = None,
) -> Listing:
    """Jobs of one namespace, a page at a time."""
    return await _listing(shared, namespace=namespace, limit=limit, token=token, labels=labels, phase=phase)


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}",
    response_model=Whole,
    dependencies=[Depends(on_job("get"))],
    responses={
        **documented(),
        200: {
            "headers": {"ETag": {"description": "Of this state of the job.", "schema": {"type": "string"}}},
            "content": {"application/json": {"example": examples.JOB}},
        },
        304: {"description": "The job is as `If-None-Match` says that the caller knows it."},
    },
)
async def get_job(
    shared: Shared,
    namespace: Namespace,
    name: JobName,
    if_none_match: Annotated[str, Header(max_length=1024, description="ETags that the caller knows.")] = "",
) -> Response:
    """One job, whole."""
    job = await find_job(shared.kube, namespace=namespace, name=name)
    tag = f'"{job["metadata"]["uid"]}-{job["metadata"]["resourceVersion"]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if knows(if_none_match, tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return JSONResponse(whole(job), headers=headers)


def knows(header: str, tag: str) -> bool:
    """Whether an `If-None-Match` names a tag; a weak one counts as the strong one (RFC 9110, 13.1.2)."""
    known = {item.strip().removeprefix("W/") for item in header.split(",")}
    return "*" in known or tag in known


async def _listing(
    shared: Services, *, namespace: str | None, limit: int, token: str, labels: str, phase: Phase | None
) -> Listing:
    fields = {"status.phase": phase.value} if phase is not None else ""
    try:
        page = await shared.kube.page(
            VIDEO_TRAINING_JOBS, namespace=namespace, labels=labels, fields=fields, limit=limit, token=token
        )
    except ForbiddenError as error:
        # Kinema was installed for some namespaces only.
        where = f"of namespace {namespace!r}" if namespace else "of all namespaces: ask for one"
        raise Refusal(HTTPStatus.FORBIDDEN, f"the server itself may not read the jobs {where}") from error
    except GoneError as error:
        raise Refusal(HTTPStatus.GONE, "the continue token is too old: list again from the start") from error
    except BadRequestError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, error.message) from error
    now = datetime.now(UTC)
    return Listing(items=[listed(job, now=now) for job in page.items], next=page.token, remaining=page.remaining)
