# SPDX-License-Identifier: Apache-2.0
"""GET .../videotrainingjobs and .../videotrainingjobs/{name}: jobs in short, and one whole; as they are or change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import JSONResponse

from kinema_api.names import VERSION
from kinema_api.status import Phase
from kinema_kube.errors import BadRequestError, ForbiddenError, GoneError
from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_server import examples, watches
from kinema_server.access import Granted, Watch, looks_at_job, looks_at_jobs, looks_everywhere
from kinema_server.feeds import Selection
from kinema_server.lookup import find_job
from kinema_server.problems import documented
from kinema_server.refusal import Refusal, forbidden
from kinema_server.rows import Listing, Whole, listed, whole
from kinema_server.services import JobName, Namespace, Services, Shared
from kinema_server.streams import MEDIA_TYPE, LastEventId, events_like

router = APIRouter(prefix=f"/{VERSION}", tags=["jobs"])

Limit = Annotated[int, Query(ge=1, le=500, description="Jobs of a page.")]
Continue = Annotated[str, Query(alias="continue", max_length=4096, description="`next` of the page before.")]
Selector = Annotated[
    str, Query(alias="labelSelector", max_length=4096, description="As kubectl's `-l`, for instance `team=video`.")
]
OnlyPhase = Annotated[Phase | None, Query(description="Only jobs of this phase.")]
_LISTS: dict[int | str, dict[str, Any]] = {
    **documented(HTTPStatus.BAD_REQUEST, HTTPStatus.GONE, HTTPStatus.TOO_MANY_REQUESTS),
    200: {
        "description": f"A page.{watches.ABOUT}",
        "content": {"application/json": {"example": examples.LISTING}, MEDIA_TYPE: events_like(examples.WATCH)},
    },
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs, and how."""

    limit: int
    token: str
    labels: str
    phase: Phase | None
    last_event_id: str


def wanted(
    limit: Limit = 100,
    token: Continue = "",
    labels: Selector = "",
    phase: OnlyPhase = None,
    last_event_id: LastEventId = "",
) -> Wanted:
    """What the parameters ask for."""
    return Wanted(limit, token, labels, phase, last_event_id)


@router.get("/videotrainingjobs", response_model=Listing, responses=_LISTS)
async def list_everywhere(
    shared: Shared,
    granted: Annotated[Granted, Depends(looks_everywhere)],
    wanted: Annotated[Wanted, Depends(wanted)],
    watch: Watch = False,
) -> Listing | Response:
    """Jobs of all namespaces, a page at a time; or, with `watch`, as they change. A watch has no pages."""
    return await _jobs(shared, granted, wanted, namespace=None, watch=watch)


@router.get("/namespaces/{namespace}/videotrainingjobs", response_model=Listing, responses=_LISTS)
async def list_namespace(
    shared: Shared,
    namespace: Namespace,
    granted: Annotated[Granted, Depends(looks_at_jobs)],
    wanted: Annotated[Wanted, Depends(wanted)],
    watch: Watch = False,
) -> Listing | Response:
    """Jobs of one namespace, a page at a time; or, with `watch`, as they change. A watch has no pages."""
    return await _jobs(shared, granted, wanted, namespace=namespace, watch=watch)


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}",
    response_model=Whole,
    responses={
        **documented(),
        200: {
            "description": f"The job.{watches.ABOUT}",
            "headers": {"ETag": {"description": "Of this state of the job.", "schema": {"type": "string"}}},
            "content": {"application/json": {"example": examples.JOB}, MEDIA_TYPE: events_like(examples.WATCH_JOB)},
        },
        304: {"description": "The job is as `If-None-Match` says that the caller knows it."},
    },
)
async def get_job(
    shared: Shared,
    namespace: Namespace,
    name: JobName,
    granted: Annotated[Granted, Depends(looks_at_job)],
    if_none_match: Annotated[str, Header(max_length=1024, description="ETags that the caller knows.")] = "",
    watch: Watch = False,
    last_event_id: LastEventId = "",
) -> Response:
    """One job, whole; or, with `watch`, as it changes, until it is deleted."""
    if watch:
        return await watches.watch_job(shared, granted, namespace=namespace, name=name, last_event_id=last_event_id)
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


async def _jobs(
    shared: Services, granted: Granted, wanted: Wanted, *, namespace: str | None, watch: bool
) -> Listing | Response:
    selection = Selection(namespace, wanted.labels, wanted.phase)
    if watch:
        return await watches.watch_jobs(shared, granted, selection=selection, last_event_id=wanted.last_event_id)
    return await _listing(shared, selection, wanted)


async def _listing(shared: Services, selection: Selection, wanted: Wanted) -> Listing:
    try:
        page = await shared.kube.page(VIDEO_TRAINING_JOBS, limit=wanted.limit, token=wanted.token, **selection.query)
    except ForbiddenError as error:
        raise forbidden(f"the server itself may not read the jobs {selection.where}") from error
    except GoneError as error:
        raise Refusal(HTTPStatus.GONE, "the continue token is too old: list again from the start") from error
    except BadRequestError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, error.message) from error
    now = datetime.now(UTC)
    return Listing(items=[listed(job, now=now) for job in page.items], next=page.token, remaining=page.remaining)
