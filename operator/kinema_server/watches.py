# SPDX-License-Identifier: Apache-2.0
"""Jobs as they change, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from fastapi.responses import StreamingResponse
from fastapi.sse import ServerSentEvent

from kinema_kube.errors import KubeError
from kinema_server.access import Granted
from kinema_server.feeds import Feed, Kind, News, Selection
from kinema_server.lookup import find_job
from kinema_server.refusal import Refusal
from kinema_server.rows import whole
from kinema_server.services import Services
from kinema_server.streams import RETRY_MILLISECONDS, Leash, answered, end, version_of

ABOUT = (
    " With `watch`, events: `added` for each job there is, then `synced`; from there on `added`, `modified` and"
    " `deleted`; a job that no longer matches counts as deleted. An event's `id` is a resource version: send the last"
    " one as `Last-Event-ID` to go on from there. `reset` says that what followed it is no longer kept: everything is"
    " told anew. `end` says why the server ends the stream."
)
_AWAY = "the Kubernetes API does not answer; connect again"


async def watch_jobs(
    shared: Services, granted: Granted, *, selection: Selection, last_event_id: str
) -> StreamingResponse:
    """The jobs of a selection as they change, each in short."""
    feed = await shared.feeds.of(selection)
    return answered(_rows(shared, feed, selection, since=version_of(last_event_id)), Leash(shared, granted))


async def watch_job(
    shared: Services, granted: Granted, *, namespace: str, name: str, last_event_id: str
) -> StreamingResponse:
    """One job as it changes, whole; the stream ends when the job is deleted.

    Raises:
        Refusal: 404, there is no such job.
    """
    await find_job(shared.kube, namespace=namespace, name=name)
    feed = await shared.feeds.of(Selection(namespace))
    events = _whole(shared, feed, namespace=namespace, name=name, since=version_of(last_event_id))
    return answered(events, Leash(shared, granted))


async def _rows(
    shared: Services, feed: Feed, selection: Selection, *, since: int | None
) -> AsyncGenerator[ServerSentEvent]:
    yield ServerSentEvent(retry=RETRY_MILLISECONDS)
    async with shared.feeds.reading(selection, feed):
        async for news in feed.follow(since=since):
            yield _event(news, data=news.row)
    yield end(_AWAY)


async def _whole(
    shared: Services, feed: Feed, *, namespace: str, name: str, since: int | None
) -> AsyncGenerator[ServerSentEvent]:
    seen = 0
    yield ServerSentEvent(retry=RETRY_MILLISECONDS)
    async with shared.feeds.reading(Selection(namespace), feed):
        async for news in feed.follow(since=since, rows=False):
            if news.kind is Kind.SYNCED:
                try:
                    job = await find_job(shared.kube, namespace=namespace, name=name)
                except (KubeError, Refusal) as error:
                    yield end(str(error) if isinstance(error, Refusal) else _AWAY)
                    return
                seen = int(job["metadata"]["resourceVersion"])
                yield _event(News(Kind.ADDED), data=json.dumps(whole(job)))
            # The job may have been read later than the feed heard of it.
            of_job = news.name == f"{namespace}/{name}" and (news.version or 0) > seen
            if of_job or not news.name:
                yield _event(news, data=news.job)
            if of_job and news.kind is Kind.DELETED:
                yield end("the job was deleted")
                return
    yield end(_AWAY)


def _event(news: News, *, data: str) -> ServerSentEvent:
    return ServerSentEvent(event=news.kind.value, id=None if news.version is None else str(news.version), raw_data=data)
