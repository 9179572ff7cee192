# SPDX-License-Identifier: Apache-2.0
"""GET .../{name}/logs: what a pod of a job writes, as text, or followed as server-sent events."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import ServerSentEvent

from kinema_api.names import CONTAINER, VERSION, Stage
from kinema_kube.errors import BadRequestError, KubeError, NotFoundError
from kinema_kube.streams import log_lines
from kinema_server import examples
from kinema_server.access import Granted, reads_logs
from kinema_server.lookup import attempt_of, find_job, find_pod
from kinema_server.problems import documented
from kinema_server.refusal import Refusal
from kinema_server.services import JobName, Namespace, Services, Shared
from kinema_server.streams import MEDIA_TYPE, RETRY_MILLISECONDS, LastEventId, Leash, answered, end, events_like

logger = logging.getLogger(__name__)

router = APIRouter(prefix=f"/{VERSION}", tags=["logs"])

TAIL = 1000
"""Lines that are sent where nobody says how many."""
_PATIENCE_SECONDS = 1.0
"""After which a stream of a quiet container begins."""
_SINCE = r"^([0-9]{1,7}[smhd]|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z)$"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ID = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z)/([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines."""

    tail: int | None
    since: str
    since_seconds: int | None
    grep: str
    follow: bool
    after: tuple[str, int] | None
    """The time of the last line that was seen, and its place among those of that time."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log."""

    time: str
    place: int
    """Among the lines of the same time; from 1."""
    text: str


def wanted(
    tail: Annotated[int | None, Query(ge=0, le=100_000, description=f"Only the last lines; {TAIL} of them.")] = None,
    since: Annotated[
        str, Query(max_length=40, pattern=_SINCE + "|^$", description="Only lines since then: `10m`, or a time (UTC).")
    ] = "",
    grep: Annotated[str, Query(max_length=256, description="Only lines that hold this text.")] = "",
    follow: Annotated[bool, Query(description="Go on until the pod ends, as server-sent events.")] = False,
    last_event_id: LastEventId = "",
) -> Wanted:
    """What the parameters ask for."""
    seen = _ID.fullmatch(last_event_id) if follow else None
    if seen is not None:
        return Wanted(None, seen[1], None, grep, follow, (seen[1], int(seen[2])))
    relative = since[-1:] in _SECONDS
    return Wanted(
        tail=TAIL if tail is None and not since else tail,
        since="" if relative else since,
        since_seconds=int(since[:-1]) * _SECONDS[since[-1]] or 1 if relative else None,
        grep=grep,
        follow=follow,
        after=None,
    )


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}/logs",
    response_class=Response,
    responses={
        **documented(HTTPStatus.CONFLICT),
        200: {
            "description": "The lines. With `follow` each is an event `line`, whose `id` is to be sent as"
            " `Last-Event-ID` to go on after it; `end` says why there are no more.",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": examples.LOG},
                MEDIA_TYPE: events_like(examples.LOG_EVENTS),
            },
        },
    },
)
async def get_logs(
    shared: Shared,
    namespace: Namespace,
    name: JobName,
    granted: Annotated[Granted, Depends(reads_logs)],
    wanted: Annotated[Wanted, Depends(wanted)],
    stage: Annotated[Stage | None, Query(description="What runs, or ran last, when left out.")] = None,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="The newest when left out.")] = None,
    rank: Annotated[int, Query(ge=0, le=10_000, description="The pod's place among those of the attempt.")] = 0,
) -> Response:
    """What a pod of a job writes."""
    job = await find_job(shared.kube, namespace=namespace, name=name)
    found, number = attempt_of(job, stage=stage, attempt=attempt)
    pod = await find_pod(shared.kube, job, stage=found, attempt=number, rank=rank)
    lines = await _begun(
        _lines(shared, pod["metadata"]["name"], namespace=namespace, wanted=wanted),
        patience=_PATIENCE_SECONDS if wanted.follow else None,
    )
    if wanted.follow:
        return answered(_events(lines), Leash(shared, granted))
    return StreamingResponse(_text(lines), media_type="text/plain")


async def _lines(shared: Services, pod: str, *, namespace: str, wanted: Wanted) -> AsyncIterator[Line]:
    """The lines that are wanted."""
    time, place = "", 0
    async for raw in log_lines(
        shared.kube,
        pod,
        namespace=namespace,
        container=CONTAINER,
        follow=wanted.follow,
        tail=wanted.tail,
        since=wanted.since,
        since_seconds=wanted.since_seconds,
    ):
        moment, _, text = raw.partition(" ")
        time, place = moment, place + 1 if moment == time else 1
        if wanted.grep in text and (wanted.after is None or _order(time, place) > _order(*wanted.after)):
            yield Line(time, place, text)


async def _begun(lines: AsyncIterator[Line], *, patience: float | None) -> AsyncIterator[Line]:
    """The same lines; what keeps the first from coming is told before an answer begins.

    Args:
        lines: not begun.
        patience: seconds after which an answer begins without a line; None waits for one.

    Raises:
        Refusal: 404 or 409, there is no log.
    """
    first: asyncio.Future[Line | None] = asyncio.ensure_future(anext(lines, None))
    try:
        await asyncio.wait({first}, timeout=patience)
        if first.done():
            first.result()
    except NotFoundError as error:
        raise Refusal(HTTPStatus.NOT_FOUND, "the pod is gone, and its log with it") from error
    except BadRequestError as error:
        raise Refusal(HTTPStatus.CONFLICT, f"there is no log yet: {error.message}") from error
    except asyncio.CancelledError:
        first.cancel()
        raise

    async def again() -> AsyncIterator[Line]:
        line = await first
        while line is not None:
            yield line
            line = await anext(lines, None)

    return again()


async def _text(lines: AsyncIterator[Line]) -> AsyncIterator[str]:
    async for line in lines:
        yield f"{line.text}\n"


async def _events(lines: AsyncIterator[Line]) -> AsyncGenerator[ServerSentEvent]:
    yield ServerSentEvent(event="start", data={}, retry=RETRY_MILLISECONDS)
    try:
        async for line in lines:
            yield ServerSentEvent(event="line", id=f"{line.time}/{line.place}", raw_data=line.text)
    except KubeError as error:
        logger.info("log cut off", extra={"error": str(error)})
        yield end("the log was cut off; connect again")
        return
    yield end("the container has ended")


def _order(time: str, place: int) -> tuple[str, int]:
    """Puts lines in order: fractions of a second may have been cut short."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return f"{whole}.{fraction:0<9}", place
