# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: how a stream says that it lives, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Header
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, ServerSentEvent, format_sse_event

from kinema_server import metrics
from kinema_server.access import Granted
from kinema_server.refusal import Refusal
from kinema_server.services import Services

PING_SECONDS = 15.0
CHECK_SECONDS = 60.0
"""Between two looks at whether the reader of a stream may still read it."""
RETRY_MILLISECONDS = 2000
"""After which a browser that lost a stream comes back."""

LastEventId = Annotated[
    str,
    Header(
        alias="Last-Event-ID",
        max_length=256,
        description="`id` of the last event that was seen: what followed is sent.",
    ),
]

MEDIA_TYPE = "text/event-stream"
_VERSION = re.compile(r"[0-9]{1,19}")


def version_of(last_event_id: str) -> int | None:
    """The resource version of an event's id; None for no id, and -1 for one that was never given out."""
    if not last_event_id:
        return None
    return int(last_event_id) if _VERSION.fullmatch(last_event_id) else -1


def end(reason: str) -> ServerSentEvent:
    """The last event of a stream that has nothing more to tell."""
    return ServerSentEvent(event="end", data={"reason": reason})


class Leash:
    """Ends a stream when its reader may no longer read it, when its time is over, or when the server goes down."""

    def __init__(self, shared: Services, granted: Granted) -> None:
        self._shared = shared
        self._granted = granted
        self._due = time.monotonic() + shared.settings.stream_seconds
        self._checked = time.monotonic()

    @property
    def closing(self) -> asyncio.Event:
        """Set when the server goes down."""
        return self._shared.closing

    @property
    def left(self) -> float:
        """Seconds until the reader is to be looked at again, or the stream is over."""
        return max(0.0, min(self._due, self._checked + CHECK_SECONDS) - time.monotonic())

    async def over(self) -> ServerSentEvent | None:
        """The stream's last event, if it has to end now."""
        if self._shared.closing.is_set():
            return end("the server goes down; connect again")
        now = time.monotonic()
        if now >= self._due:
            return end("a stream does not last longer; connect again")
        if now - self._checked < CHECK_SECONDS:
            return None
        try:
            await self._granted.again()
        except Refusal as refusal:
            return end(refusal.message)
        self._checked = now
        return None


def answered(events: AsyncGenerator[ServerSentEvent], leash: Leash) -> StreamingResponse:
    """The answer that a stream is."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(encoded(events, leash), media_type=MEDIA_TYPE, headers=headers)


async def encoded(events: AsyncGenerator[ServerSentEvent], leash: Leash) -> AsyncGenerator[bytes]:
    """Events as they go over the wire, with a comment whenever there is none for a while."""
    coming: asyncio.Future[ServerSentEvent] | None = None
    closing = asyncio.ensure_future(leash.closing.wait())
    metrics.STREAMS.inc()
    try:
        while (last := await leash.over()) is None:
            coming = coming or asyncio.ensure_future(anext(events))
            either: set[asyncio.Future[Any]] = {coming, closing}
            await asyncio.wait(either, timeout=min(PING_SECONDS, leash.left), return_when=asyncio.FIRST_COMPLETED)
            if leash.closing.is_set():
                continue
            if not coming.done():
                yield KEEPALIVE_COMMENT
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield wire(event)
        yield wire(last)
    finally:
        metrics.STREAMS.dec()
        tasks = [task for task in (coming, closing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await events.aclose()


def wire(event: ServerSentEvent) -> bytes:
    """An event as it goes over the wire."""
    data = event.raw_data if event.raw_data is not None or event.data is None else json.dumps(event.data)
    return format_sse_event(data_str=data, event=event.event, id=event.id, retry=event.retry)


def events_like(example: str) -> dict[str, Any]:
    """The content of a stream (OpenAPI 3.2, Server-Sent Events)."""
    fields = {name: {"type": "string"} for name in ("data", "event", "id")}
    retry = {"retry": {"type": "integer", "minimum": 0}}
    return {"itemSchema": {"type": "object", "properties": {**fields, **retry}}, "example": example}
