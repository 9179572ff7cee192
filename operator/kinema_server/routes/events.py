# SPDX-License-Identifier: Apache-2.0
"""GET .../{name}/events: what Kubernetes and the operator reported of a job, its children and their pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends

from kinema_api.base import Model
from kinema_api.names import VERSION
from kinema_kube.client import Object
from kinema_kube.resources import EVENTS
from kinema_server import examples
from kinema_server.access import reads_events
from kinema_server.lookup import find_job, status_of
from kinema_server.problems import documented
from kinema_server.services import JobName, Namespace, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["jobs"])

MOST = 500
"""Events of an answer: the newest."""


class Event(Model):
    """Something that was reported."""

    type: str
    """Normal or Warning."""
    reason: str
    """One CamelCase word."""
    message: str
    """A sentence."""
    object: str
    """What it is about, for instance pod/wan-train-1-master-0."""
    count: int
    """How often it happened."""
    last_at: str | None
    """When it happened last."""


class Events(Model):
    """What was reported of a job. The cluster forgets events after an hour or so."""

    items: list[Event]
    """The newest first."""


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}/events",
    dependencies=[Depends(reads_events)],
    responses={**documented(), 200: {"content": {"application/json": {"example": examples.EVENTS}}}},
)
async def get_events(shared: Shared, namespace: Namespace, name: JobName) -> Events:
    """What Kubernetes and the operator reported of a job, its children and their pods."""
    job = await find_job(shared.kube, namespace=namespace, name=name)
    found = [event_of(item) for item in await shared.kube.list(EVENTS, namespace=namespace) if concerns(item, job)]
    return Events(items=sorted(found, key=lambda event: event.last_at or "", reverse=True)[:MOST])


def concerns(event: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Whether an event is about a job, a child of it or a pod of one."""
    about = event.get("involvedObject") or {}
    if about.get("uid") == job["metadata"]["uid"]:
        return True
    stages = status_of(job).get("stages") or []
    children = {attempt["child"] for stage in stages for attempt in stage.get("attempts") or [] if attempt.get("child")}
    name = about.get("name") or ""
    # A pod of a child is CHILD-SUFFIX; the suffixes of Jobs have one part, those of PyTorchJobs two.
    return bool({name, name.rsplit("-", 1)[0], name.rsplit("-", 2)[0]} & children)


def event_of(item: Object) -> Event:
    """An event as it is shown."""
    about = item.get("involvedObject") or {}
    series = item.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        item.get("lastTimestamp"),
        item.get("eventTime"),
        item.get("firstTimestamp"),
    )
    return Event(
        type=item.get("type") or "Normal",
        reason=item.get("reason") or "",
        message=item.get("message") or "",
        object=f"{(about.get('kind') or 'object').lower()}/{about.get('name') or ''}",
        count=series.get("count") or item.get("count") or 1,
        last_at=next((time for time in times if time), None),
    )
