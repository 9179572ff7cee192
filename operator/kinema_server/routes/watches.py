# SPDX-License-Identifier: Apache-2.0
"""GET .../videotrainingjobs/watch and .../{name}/watch: jobs as they change, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent

from kinema_api.names import VERSION
from kinema_kube.errors import KubeError
from kinema_server import examples
from kinema_server.access import Granted, in_namespace, on_job
from kinema_server.feeds import Feed, Kind, News
from kinema_server.lookup import find_job
from kinema_server.problems import documented
from kinema_server.refusal import Refusal
from kinema_server.rows import whole
from kinema_server.services import JobName, Namespace, Shared
from kinema_server.streams import RETRY_MILLISECONDS, LastEventId, Leash, documented_stream, end, version_of

router = APIRouter(prefix=f"/{VERSION}", tags=["streams"])


_AWAY = "the Kubernetes API does not answer; connect again"


def _responses(example: str) -> dict[int | str, dict[str, Any]]:
    return {
        **documented(),
        200: documented_stream(
            "Events. `added` for each job there is, then `synced`; from there on `added`, `modified` and `deleted`."
            " An event's `id` is a resource version: send the last one as `Last-Event-ID` to go on from there."
            " `reset` says that what followed it is no longer kept: everything is told anew. `end` says why the"
            " server ends the stream.",
            example,
        ),
    }


async def _feed(namespace: Namespace, shared: Shared) -> Feed:
    return await shared.feeds.of(namespace)


async def _there(namespace: Namespace, name: JobName, shared: Shared) -> None:
    await find_job(shared.kube, namespace=namespace, name=name)


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/watch",
    response_class=EventSourceResponse,
    responses=_responses(examples.WATCH),
)
async def watch_namespace(
    shared: Shared,
    namespace: Namespace,
    granted: Annotated[Granted, Depends(in_namespace("watch"))],
    feed: Annotated[Feed, Depends(_feed)],
    last_event_id: LastEventId = "",
) -> AsyncIterator[ServerSentEvent]:
    """The jobs of a namespace as they change, each in short."""
    leash, since = Leash(shared, granted), version_of(last_event_id)
    yield ServerSentEvent(retry=RETRY_MILLISECONDS)
    async with shared.feeds.reading(namespace, feed):
        while (last := await _last(leash, feed)) is None:
            async for news in feed.follow(since=since, seconds=leash.left):
                since = since if news.version is None else news.version
                yield _event(news, data=news.row)
        yield last


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}/watch",
    response_class=EventSourceResponse,
    responses=_responses(examples.WATCH_JOB),
)
async def watch_job(
    shared: Shared,
    namespace: Namespace,
    name: JobName,
    granted: Annotated[Granted, Depends(on_job("get", "watch"))],
    _found: Annotated[None, Depends(_there)],
    feed: Annotated[Feed, Depends(_feed)],
    last_event_id: LastEventId = "",
) -> AsyncIterator[ServerSentEvent]:
    """One job as it changes, whole; the stream ends when the job is deleted."""
    leash, since, seen = Leash(shared, granted), version_of(last_event_id), 0
    yield ServerSentEvent(retry=RETRY_MILLISECONDS)
    async with shared.feeds.reading(namespace, feed):
        while (last := await _last(leash, feed)) is None:
            async for news in feed.follow(since=since, seconds=leash.left, rows=False):
                since = since if news.version is None else news.version
                if news.kind is Kind.SYNCED:
                    try:
                        job = await find_job(shared.kube, namespace=namespace, name=name)
                    except (KubeError, Refusal) as error:
                        yield end(str(error) if isinstance(error, Refusal) else _AWAY)
                        return
                    seen = int(job["metadata"]["resourceVersion"])
                    yield _event(News(Kind.ADDED), data=json.dumps(whole(job)))
                # The job may have been read later than the feed heard of it.
                of_job = news.name == name and (news.version or 0) > seen
                if of_job or not news.name:
                    yield _event(news, data=news.job)
                if of_job and news.kind is Kind.DELETED:
                    yield end("the job was deleted")
                    return
        yield last


async def _last(leash: Leash, feed: Feed) -> ServerSentEvent | None:
    return await leash.over() or (None if feed.alive else end(_AWAY))


def _event(news: News, *, data: str) -> ServerSentEvent:
    return ServerSentEvent(event=news.kind.value, id=None if news.version is None else str(news.version), raw_data=data)
