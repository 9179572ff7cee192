# SPDX-License-Identifier: Apache-2.0
"""The client: one method a verb, plain JSON data in and out."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal

from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from kinema_kube.connection import Connection, Query
from kinema_kube.errors import GoneError, NotFoundError
from kinema_kube.resources import PODS, Resource

Object = dict[str, Any]
Objects = list[Object]
Labels = Mapping[str, str] | str
Propagation = Literal["Background", "Foreground", "Orphan"]

CHUNK = 500
"""Objects of one LIST request."""

_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a collection."""

    items: Objects
    token: str
    """Continues the list; empty at its end."""
    remaining: int | None
    """Objects after this page, where the API server knows."""
    resource_version: str


class Kube:
    """A connection to an API server; `connect` makes one."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        reload: Callable[[Configuration], Awaitable[None]] | None = None,
        request_timeout: float = 30.0,
        user_agent: str = "kinema",
    ) -> None:
        self._connection = Connection(
            configuration, reload=reload, request_timeout=request_timeout, user_agent=user_agent
        )

    @property
    def api(self) -> ApiClient:
        """The official client, for what has no method here (leader election, for instance)."""
        return self._connection.api

    def fenced(self, fence: Callable[[], None]) -> Kube:
        """The same connection; `fence` is asked right before each request that changes something, and may raise."""
        return self._over(self._connection.fenced(fence))

    def in_name_of(self, token: str) -> Kube:
        """The same API server, asked in the name of whoever holds `token`; no credentials of this process go along."""
        return self._over(self._connection.in_name_of(token))

    def _over(self, connection: Connection) -> Kube:
        other = copy.copy(self)
        other._connection = connection
        return other

    async def close(self) -> None:
        """Close every connection."""
        await self._connection.close()

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object:
        """One object.

        Raises:
            NotFoundError: there is none.
        """
        return await self._connection.request("GET", resource.path(namespace=namespace, name=name))

    async def find(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object | None:
        """One object; None when there is none."""
        try:
            return await self.get(resource, name, namespace=namespace)
        except NotFoundError:
            return None

    async def page(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: Labels = "",
        fields: Labels = "",
        limit: int = CHUNK,
        token: str = "",
    ) -> Page:
        """A part of a collection, of all namespaces when none is named.

        Raises:
            GoneError: the token is too old; start again.
        """
        query = {"labelSelector": selector(labels), "fieldSelector": selector(fields), "continue": token}
        answer = await self._connection.request(
            "GET", resource.path(namespace=namespace), query={**query, "limit": str(limit) if limit else ""}
        )
        metadata = answer.get("metadata", {})
        # The API server leaves kind and version out of the items of a list.
        identity = {"apiVersion": resource.api_version, "kind": resource.kind}
        return Page(
            items=[{**identity, **item} for item in answer.get("items") or []],
            token=metadata.get("continue") or "",
            remaining=metadata.get("remainingItemCount"),
            resource_version=metadata.get("resourceVersion") or "",
        )

    async def list(
        self, resource: Resource, *, namespace: str | None = None, labels: Labels = "", fields: Labels = ""
    ) -> Objects:
        """Every object of a collection, read in chunks; of all namespaces when none is named."""
        try:
            return [item async for item in self._chunks(resource, namespace=namespace, labels=labels, fields=fields)]
        except GoneError:
            # etcd was compacted between two chunks; what was read so far is of another moment.
            page = await self.page(resource, namespace=namespace, labels=labels, fields=fields, limit=0)
            return page.items

    async def _chunks(
        self, resource: Resource, *, namespace: str | None, labels: Labels, fields: Labels
    ) -> AsyncIterator[Object]:
        token = ""
        while True:
            page = await self.page(resource, namespace=namespace, labels=labels, fields=fields, token=token)
            for item in page.items:
                yield item
            token = page.token
            if not token:
                return

    async def create(
        self,
        resource: Resource,
        body: Object,
        *,
        namespace: str | None = None,
        name: str | None = None,
        subresource: str | None = None,
        manager: str = "",
        strict: bool = True,
        dry_run: bool = False,
    ) -> Object:
        """Create an object; the namespace is the object's own when it names one.

        Args:
            resource: what to create.
            body: the object.
            namespace: where, if `body` does not say.
            name: the parent of a subresource, such as the account of a `token`.
            subresource: such as `token` or `eviction`.
            manager: field manager.
            strict: refuse unknown fields.
            dry_run: check it as a real one, and store nothing.

        Raises:
            AlreadyExistsError: there is an object of that name.
        """
        path = resource.path(
            namespace=namespace or body.get("metadata", {}).get("namespace"), name=name, subresource=subresource
        )
        query = {"fieldManager": manager, "fieldValidation": "Strict" if strict else "", "dryRun": "All" * dry_run}
        return await self._connection.request("POST", path, query=query, body=body)

    async def apply(
        self,
        resource: Resource,
        body: Object,
        *,
        manager: str,
        force: bool = False,
        subresource: str | None = None,
    ) -> Object:
        """Server-side apply: `body` holds every field that `manager` wants, and only those.

        With `metadata.resourceVersion` in `body` the object must exist and be at it. `metadata.uid` is checked too, but
        not on the status of a custom resource, where the API server takes nothing but the status from a body.

        Raises:
            ConflictError: another manager owns a field (without `force`), or the object is another one.
        """
        metadata = body["metadata"]
        path = resource.path(namespace=metadata.get("namespace"), name=metadata["name"], subresource=subresource)
        query = {"fieldManager": manager, "force": "true" if force else "", "fieldValidation": "Strict"}
        full = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return await self._connection.request("PATCH", path, query=query, body=full, content_type=_APPLY_PATCH)

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: Object,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        resource_version: str | None = None,
        uid: str | None = None,
        manager: str = "",
    ) -> Object:
        """Merge `patch` into an object; null removes a field, a list replaces a list.

        Raises:
            ConflictError: the object is no longer at `resource_version`, or has another uid (which alone does not
                protect the status of a custom resource: see `apply`).
        """
        expected = {"resourceVersion": resource_version, "uid": uid}
        metadata = {**patch.get("metadata", {}), **{key: value for key, value in expected.items() if value}}
        body = {**patch, "metadata": metadata} if metadata else patch
        return await self._connection.request(
            "PATCH",
            resource.path(namespace=namespace, name=name, subresource=subresource),
            query={"fieldManager": manager, "fieldValidation": "Strict"},
            body=body,
            content_type=_MERGE_PATCH,
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        propagation: Propagation = "Background",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> None:
        """Delete an object and, unless orphaned, what it owns.

        Raises:
            NotFoundError: it is gone already.
            ConflictError: the object of that name has another uid or resource version.
        """
        expected = {"uid": uid, "resourceVersion": resource_version}
        preconditions = {key: value for key, value in expected.items() if value}
        options: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            **({"preconditions": preconditions} if preconditions else {}),
        }
        await self._connection.request("DELETE", resource.path(namespace=namespace, name=name), body=options)

    async def log(self, pod: str, *, namespace: str, container: str, lines: int = 1) -> str:
        """The last lines of a container's log, each after the time at which it was written.

        Raises:
            ForbiddenError: pods/log may not be read.
            BadRequestError: the container has not started.
            NotFoundError: the pod is gone.
        """
        query = {"container": container, "tailLines": str(lines), "timestamps": "true"}
        path = PODS.path(namespace=namespace, name=pod, subresource="log")
        return (await self._connection.read("GET", path, query=query)).decode(errors="replace")

    async def raw(self, path: str) -> bytes:
        """The answer to a GET of any path, for instance `/readyz`."""
        return await self._connection.read("GET", path)

    def stream(
        self, path: str, *, query: Query, quiet: float | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The lines of an answer that may go on for long, without their ends.

        Args:
            path: what to GET.
            query: its parameters; empty ones are left out.
            quiet: seconds without a byte after which the connection is taken for dead; None never does.

        Raises:
            UnreachableError: here or between two lines, the connection is lost.
        """
        return self._connection.stream(path, query=query, quiet=quiet)


def selector(terms: Labels) -> str:
    """A selector of labels or fields, as a request carries it."""
    return terms if isinstance(terms, str) else ",".join(f"{key}={value}" for key, value in terms.items())
