# SPDX-License-Identifier: Apache-2.0
"""Changes of objects, for as long as somebody looks: over lost connections, and over watches that grew too old."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from kinema_kube import Kube
from kinema_kube.client import Object
from kinema_kube.errors import GoneError, UnreachableError, error_of
from kinema_kube.resources import Resource
from kinema_kube.streams import WATCH_SECONDS

_QUIET_SECONDS = 100.0
"""The API server sends a bookmark about once a minute."""
PATIENCE = 120.0
"""For how long an API server that does not answer is tried again."""


class Change(NamedTuple):
    """What became of an object."""

    kind: str
    """ADDED, MODIFIED or DELETED."""
    object: Object


async def changes(
    kube: Kube,
    resource: Resource,
    *,
    namespace: str | None,
    labels: str = "",
    fields: str = "",
    note: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[Change]:
    """Every object as it is now, then whatever changes.

    Raises:
        KubeError: the API server refuses, or does not answer for `PATIENCE` seconds.
    """
    known: dict[str, Object] = {}
    silent_since: float | None = None
    version = ""
    while True:
        try:
            if not version:
                page = await kube.page(resource, namespace=namespace, labels=labels, fields=fields, limit=0)
                for change in _difference(known, page.items):
                    yield change
                known = {found["metadata"]["uid"]: found for found in page.items}
                version, silent_since = page.resource_version, None
            selectors = {"labelSelector": labels, "fieldSelector": fields}
            async for change in _watch(kube, resource, namespace=namespace, selectors=selectors, since=version):
                silent_since = None
                version = _version(change.object)
                if change.kind == "BOOKMARK":
                    continue
                known[change.object["metadata"]["uid"]] = change.object
                yield change
        except GoneError:
            version = ""
        except UnreachableError as error:
            if silent_since is None:
                silent_since = time.monotonic()
                note(f"the connection is lost ({error.message}); trying again")
            elif time.monotonic() - silent_since > PATIENCE:
                raise
            await asyncio.sleep(1.0)


def _difference(known: Mapping[str, Object], found: list[Object]) -> list[Change]:
    """What has changed while nobody watched."""
    here = {item["metadata"]["uid"] for item in found}
    gone = [Change("DELETED", item) for uid, item in known.items() if uid not in here]
    moved = []
    for item in found:
        before = known.get(item["metadata"]["uid"])
        if before is None or _version(before) != _version(item):
            moved.append(Change("MODIFIED" if before else "ADDED", item))
    return [*gone, *moved]


def _version(found: Object) -> str:
    return str(found["metadata"]["resourceVersion"])


async def _watch(
    kube: Kube, resource: Resource, *, namespace: str | None, selectors: Mapping[str, str], since: str
) -> AsyncIterator[Change]:
    query = {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": since,
        "timeoutSeconds": str(WATCH_SECONDS),
        **selectors,
    }
    identity = {"apiVersion": resource.api_version, "kind": resource.kind}
    path = resource.path(namespace=namespace)
    async with kube.stream(path, query=query, quiet=_QUIET_SECONDS) as lines:
        async for line in lines:
            if not line:
                continue
            event: dict[str, Any] = json.loads(line)
            if event["type"] == "ERROR":
                status, said = event["object"], json.dumps(event["object"]).encode()
                raise error_of(status=int(status.get("code") or 500), body=said, request=f"watch {path}", headers={})
            yield Change(event["type"], {**identity, **event["object"]})
