# SPDX-License-Identifier: Apache-2.0
"""Answers reads, for whoever the cluster's own rules let read the same objects."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from kinema_api import names
from kinema_kube.client import Object
from kinema_kube.errors import BadRequestError, ForbiddenError, GoneError
from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_server.refusal import Refusal
from kinema_server.reviews import authorize, bearer_token, identify
from kinema_server.rows import Listing, row_of, running_progress, whole
from kinema_server.services import PathName, Services, Shared

router = APIRouter(prefix=f"/{names.VERSION}")

Limit = Annotated[int, Query(ge=1, le=500)]
Continue = Annotated[str, Query(alias="continue", max_length=4096)]
Selector = Annotated[str, Query(alias="labelSelector", max_length=4096)]


@router.get("/videotrainingjobs")
async def list_everywhere(
    request: Request, shared: Shared, limit: Limit = 100, token: Continue = "", labels: Selector = ""
) -> Listing:
    """Jobs of all namespaces."""
    return await _listing(request, shared, namespace=None, limit=limit, token=token, labels=labels)


@router.get("/namespaces/{namespace}/videotrainingjobs")
async def list_namespace(
    request: Request,
    shared: Shared,
    namespace: PathName,
    limit: Limit = 100,
    token: Continue = "",
    labels: Selector = "",
) -> Listing:
    """Jobs of one namespace."""
    return await _listing(request, shared, namespace=namespace, limit=limit, token=token, labels=labels)


@router.get("/namespaces/{namespace}/videotrainingjobs/{name}")
async def get_job(request: Request, shared: Shared, namespace: PathName, name: PathName) -> dict[str, Any]:
    """One job, whole."""
    return whole(await _job(request, shared, namespace=namespace, name=name))


@router.get("/namespaces/{namespace}/videotrainingjobs/{name}/stages")
async def get_stages(request: Request, shared: Shared, namespace: PathName, name: PathName) -> dict[str, Any]:
    """Where each stage of a job stands, in order."""
    job = await _job(request, shared, namespace=namespace, name=name)
    return {"items": (job.get("status") or {}).get("stages") or []}


@router.get("/namespaces/{namespace}/videotrainingjobs/{name}/progress")
async def get_progress(request: Request, shared: Shared, namespace: PathName, name: PathName) -> dict[str, Any]:
    """What the running stage of a job said last; null before it has spoken."""
    job = await _job(request, shared, namespace=namespace, name=name)
    status = job.get("status") or {}
    return {
        "phase": status.get("phase") or "Pending",
        "stage": status.get("stage"),
        "progress": running_progress(job),
    }


async def _listing(
    request: Request, shared: Services, *, namespace: str | None, limit: int, token: str, labels: str
) -> Listing:
    await _allow(request, shared, verb="list", namespace=namespace)
    try:
        page = await shared.kube.page(VIDEO_TRAINING_JOBS, namespace=namespace, labels=labels, limit=limit, token=token)
    except ForbiddenError as error:
        # Kinema was installed for some namespaces only.
        where = f"of namespace {namespace!r}" if namespace else "of all namespaces: ask for one"
        raise Refusal(HTTPStatus.FORBIDDEN, f"the server itself may not read the jobs {where}") from error
    except GoneError as error:
        raise Refusal(HTTPStatus.GONE, "the continue token is too old: list again from the start") from error
    except BadRequestError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, error.message) from error
    now = datetime.now(UTC)
    return Listing(items=[row_of(job, now=now) for job in page.items], next=page.token, remaining=page.remaining)


async def _job(request: Request, shared: Services, *, namespace: str, name: str) -> Object:
    await _allow(request, shared, verb="get", namespace=namespace, name=name)
    job = await shared.kube.find(VIDEO_TRAINING_JOBS, name, namespace=namespace)
    if job is None:
        raise Refusal(HTTPStatus.NOT_FOUND, f"there is no {names.JOB_KIND} {name!r} in namespace {namespace!r}")
    return job


async def _allow(
    request: Request, shared: Services, *, verb: str, namespace: str | None, name: str | None = None
) -> None:
    identity = await identify(shared.kube, bearer_token(request))
    await authorize(shared.kube, identity, verb=verb, namespace=namespace, name=name)
