# SPDX-License-Identifier: Apache-2.0
"""kopf as an informer: handlers that put an object into the store and a key into the queue, and nothing else.

No timers, daemons, indices, or handlers of changes: those would write finalizers and annotations into users' objects.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, cast

import aiohttp
import kopf

from kinema_api.names import LABEL_JOB_UID
from kinema_kube import Kube, Resource
from kinema_kube.resources import TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_operator.observed import Raw
from kinema_operator.queue import Queue
from kinema_operator.relist import relist
from kinema_operator.settings import Settings
from kinema_operator.store import CHILDREN, Store, owner_uid
from kinema_operator.watches import SERVER_SECONDS, Watches

log = logging.getLogger(__name__)

REQUEST_SECONDS = 30
LOGIN_SECONDS = 10.0
"""Least seconds between two logins, for an API server that refuses whatever it is shown."""

Handler = Callable[..., Awaitable[Any]]
Traces = Callable[[], list[aiohttp.TraceConfig]]


class Endless:
    """Waits between attempts at a request, without end: an operator does not give up on its API server."""

    def __iter__(self) -> Iterator[float]:
        seconds = 0.5
        while True:
            yield seconds * (0.5 + random.random() / 2)
            seconds = min(30.0, seconds * 2)


class NoDiff(kopf.DiffBaseStorage):
    """Keeps no last state to compare with: no handler asks for a difference, and its copies cost as much as a look."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of an object."""
        return cast(kopf.BodyEssence, {})

    def fetch(self, **_: Any) -> None:
        """Nothing was kept."""

    def store(self, **_: Any) -> None:
        """Keep nothing."""


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf reduced to watching."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    # Neither namespaces nor definitions are watched; both need rights over the whole cluster.
    settings.scanning.disabled = True
    settings.watching.server_timeout = SERVER_SECONDS
    settings.watching.connect_timeout = 10
    # Between a watch that has come to nothing and the list that begins it anew.
    settings.watching.reconnect_backoff = 0.5
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Endless()
    settings.process.ultimate_exiting_timeout = 25
    # A worker an object, which holds what it was last shown: with the default of 5 s a burst of jobs has all at once.
    settings.queueing.idle_timeout = 0.1
    settings.persistence.diffbase_storage = NoDiff()
    for resource in CHILDREN:
        # A bare key selects objects that have the label. The filter of a handler would only act after the transfer.
        settings.watching.label_selectors[resource.group, resource.version, resource.plural] = LABEL_JOB_UID
    return settings


def registry(
    *, resources: Collection[Resource], store: Store, queue: Queue, watches: Watches, kube: Kube, traces: Traces
) -> kopf.OperatorRegistry:
    """The handlers of one operator."""
    found = kopf.OperatorRegistry()
    kopf.on.login(registry=found)(_login(kube, traces))
    for resource in resources:
        seen = _seen(resource, store=store, queue=queue, watches=watches)
        kopf.on.event(resource.group, resource.version, resource.plural, registry=found, id=resource.plural)(seen)
    return found


async def inform(
    *,
    settings: Settings,
    resources: Collection[Resource],
    store: Store,
    queue: Queue,
    watches: Watches,
    kube: Kube,
    traces: Traces,
    stop: asyncio.Event,
) -> None:
    """Watch until told to stop."""
    namespaces = settings.watch_namespaces
    for resource in resources:
        for namespace in (namespaces if resource.namespaced else ()) or (None,):
            watches.expect(resource.plural, namespace)
    await kopf.operator(
        registry=registry(resources=resources, store=store, queue=queue, watches=watches, kube=kube, traces=traces),
        settings=kopf_settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )


def note(resource: Resource, kind: str | None, item: Raw, *, store: Store, queue: Queue) -> None:
    """Keep what an event says, and look at the jobs that it can matter to."""
    news = True
    if kind == "DELETED":
        store.discard(resource, item["metadata"]["uid"])
    else:
        news = store.put(resource, item)
    if not news:
        return
    for uid in concerned(resource, item, store):
        queue.add(uid)


def concerned(resource: Resource, item: Raw, store: Store) -> list[str]:
    """Uids of the jobs that an object can matter to."""
    if resource is VIDEO_TRAINING_JOBS:
        return [str(item["metadata"]["uid"])]
    if resource is TRAINING_POOLS:
        # A job that has started has its pools frozen into its status.
        return store.unresolved()
    owner = owner_uid(item)
    return [owner] if owner else []


def _seen(resource: Resource, *, store: Store, queue: Queue, watches: Watches) -> Handler:
    async def seen(event: Any, **_: Any) -> None:
        item = dict(event["object"])
        watches.beat(resource.plural, item["metadata"].get("namespace"))
        note(resource, event["type"], item, store=store, queue=queue)

    return seen


def _login(kube: Kube, traces: Traces) -> Handler:
    """Kopf borrows the connection settings of the official package, its renewed tokens included."""
    last = float("-inf")

    async def login(**_: Any) -> kopf.AiohttpSession:
        nonlocal last
        left = last + LOGIN_SECONDS - time.monotonic()
        if left > 0:
            raise kopf.TemporaryError("the API server refuses our credentials", delay=left)
        last = time.monotonic()
        configuration = kube.api.configuration

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
            if header:
                request.headers["Authorization"] = header
            return await handler(request)

        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=kube.api.rest_client.ssl_context),
            middlewares=[authorize, relist],
            proxy=configuration.proxy,
            trace_configs=traces(),
        )
        return kopf.AiohttpSession(server=configuration.host, aiohttp_session=session)

    return login
