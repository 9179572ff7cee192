# SPDX-License-Identifier: Apache-2.0
"""Answers of the API server that go on: changes of objects, lines of a log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from kinema_kube.client import Kube, Labels, Object, selector
from kinema_kube.errors import UnreachableError, error_of
from kinema_kube.resources import PODS, Resource

WATCH_SECONDS = 240
"""After which a watch ends, to be begun again where it was."""
_QUIET_SECONDS = 100.0
"""The API server sends a bookmark about once a minute."""

Kind = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to an object."""

    kind: Kind
    obj: Object
    """The object after it; of a bookmark only its resource version."""

    @property
    def version(self) -> int:
        """The resource version, which rises with each change."""
        return int(self.obj["metadata"]["resourceVersion"])


async def watch(
    kube: Kube, resource: Resource, *, namespace: str | None, version: str, labels: Labels = "", fields: Labels = ""
) -> AsyncIterator[Change]:
    """Changes after a resource version, until the watch ends; the caller begins again with the last version it saw.

    Raises:
        GoneError: the version is too old; list again.
    """
    query = {
        "watch": "true",
        "resourceVersion": version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(WATCH_SECONDS),
        "labelSelector": selector(labels),
        "fieldSelector": selector(fields),
    }
    path = resource.path(namespace=namespace)
    async with kube.stream(path, query=query, quiet=_QUIET_SECONDS) as lines:
        async for line in lines:
            if not line:
                continue
            kind, obj = _event(line, path)
            if kind == "ERROR":
                raise error_of(
                    status=obj.get("code") or 500, body=json.dumps(obj).encode(), request=f"watch {path}", headers={}
                )
            yield Change(kind=kind, obj=obj)  # type: ignore[arg-type]


def _event(line: bytes, path: str) -> tuple[str, Object]:
    try:
        event: dict[str, Any] = json.loads(line)
        return event["type"], event["object"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableError(f"watch {path}: what came is no event: {error}") from error


async def log_lines(
    kube: Kube,
    pod: str,
    *,
    namespace: str,
    container: str,
    follow: bool,
    tail: int | None = None,
    since: str = "",
    since_seconds: int | None = None,
) -> AsyncIterator[str]:
    """The lines of a container's log, each after the time at which it was written and a space.

    Args:
        kube: the cluster.
        pod: its name.
        namespace: where it is.
        container: of the pod.
        follow: go on until the container ends.
        tail: only the last ones.
        since: only those from a moment (RFC 3339) on.
        since_seconds: only those of the last seconds.

    Raises:
        BadRequestError: the container has not started.
        NotFoundError: the pod is gone.
    """
    query = {
        "container": container,
        "timestamps": "true",
        "follow": "true" if follow else "",
        "tailLines": "" if tail is None else str(tail),
        "sinceTime": since,
        "sinceSeconds": "" if since_seconds is None else str(since_seconds),
    }
    path = PODS.path(namespace=namespace, name=pod, subresource="log")
    async with kube.stream(path, query=query, quiet=None if follow else 60.0) as lines:
        async for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
