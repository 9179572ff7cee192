# SPDX-License-Identifier: Apache-2.0
"""The client: one method a verb, plain JSON data in and out."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from kinema_kube.errors import GoneError, NotFoundError, UnauthorizedError, UnreachableError, error_of
from kinema_kube.resources import PODS, Resource

Object = dict[str, Any]
Objects = list[Object]
Labels = Mapping[str, str] | str
Propagation = Literal["Background", "Foreground", "Orphan"]

CHUNK = 500
"""Objects of one LIST request."""

_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"
_LINE_LIMIT = 4 << 20
"""Bytes after which a line of a stream is cut: etcd keeps no object that is larger."""
_RELOAD_INTERVAL = 10.0
"""Seconds between two reads of credentials that the API server refused."""


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
        self.api = ApiClient(configuration)
        """The official client, for what has no method here (leader election, for instance)."""
        self.api.user_agent = user_agent
        self._reload = reload
        self._reloaded_at = float("-inf")
        self._reloading = asyncio.Lock()
        self._timeout = request_timeout
        self._fence: Callable[[], None] = lambda: None
        self._token = ""
        self._bare: ApiClient | None = None

    def fenced(self, fence: Callable[[], None]) -> Kube:
        """The same connection; `fence` is asked right before each request that changes something, and may raise."""
        other = copy.copy(self)
        other._fence = fence
        return other

    def in_name_of(self, token: str) -> Kube:
        """The same API server, asked in the name of whoever holds `token`; no credentials of this process go along."""
        if self._bare is None:
            # A client certificate would win over the token: these requests go over connections without one.
            bare = copy.copy(self.api.configuration)
            bare.api_key, bare.refresh_api_key_hook = {}, None
            bare.cert_file = bare.key_file = None
            self._bare = ApiClient(bare)
            self._bare.user_agent = self.api.user_agent
        other = copy.copy(self)
        other.api, other._token, other._reload = self._bare, token, None
        return other

    async def close(self) -> None:
        """Close every connection."""
        await self.api.close()  # type: ignore[no-untyped-call]
        if self._bare is not None and self._bare is not self.api:
            await self._bare.close()  # type: ignore[no-untyped-call]

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object:
        """One object.

        Raises:
            NotFoundError: there is none.
        """
        return await self._request("GET", resource.path(namespace=namespace, name=name))

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
        query = {"labelSelector": _selector(labels), "fieldSelector": _selector(fields), "continue": token}
        answer = await self._request(
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
        return await self._request("POST", path, query=query, body=body)

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
        return await self._request("PATCH", path, query=query, body=full, content_type=_APPLY_PATCH)

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
        return await self._request(
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
        await self._request("DELETE", resource.path(namespace=namespace, name=name), body=options)

    async def log(self, pod: str, *, namespace: str, container: str, lines: int = 1) -> str:
        """The last lines of a container's log, each after the time at which it was written.

        Raises:
            ForbiddenError: pods/log may not be read.
            BadRequestError: the container has not started.
            NotFoundError: the pod is gone.
        """
        query = {"container": container, "tailLines": str(lines), "timestamps": "true"}
        path = PODS.path(namespace=namespace, name=pod, subresource="log")
        return (await self._authenticated("GET", path, query=query)).decode(errors="replace")

    async def raw(self, path: str) -> bytes:
        """The answer to a GET of any path, for instance `/readyz`."""
        return await self._authenticated("GET", path)

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], quiet: float | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer that may go on for long, without their ends.

        Args:
            path: what to GET.
            query: its parameters; empty ones are left out.
            quiet: seconds without a byte after which the connection is taken for dead; None never does.

        Raises:
            UnreachableError: here or between two lines, the connection is lost.
        """
        patience = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=quiet)
        started = time.monotonic()
        try:
            response = await self._open("GET", path, query=query, patience=patience)
        except UnauthorizedError:
            if not await self._renew(since=started):
                raise
            response = await self._open("GET", path, query=query, patience=patience)
        try:
            yield _lines(response.content, f"GET {path}")
        finally:
            response.close()

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        answer: Object = json.loads(
            await self._authenticated(method, path, query=query, body=body, content_type=content_type)
        )
        return answer

    async def _authenticated(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        started = time.monotonic()
        try:
            return await self._send(method, path, query=query, body=body, content_type=content_type)
        except UnauthorizedError:
            # The request was not carried out, so that trying again is safe whatever its method.
            if not await self._renew(since=started):
                raise
        return await self._send(method, path, query=query, body=body, content_type=content_type)

    async def _renew(self, *, since: float) -> bool:
        """Read the credentials again; False when that was done a moment ago and did not help."""
        async with self._reloading:
            if self._reloaded_at >= since:
                return True
            if self._reload is None or time.monotonic() - self._reloaded_at < _RELOAD_INTERVAL:
                return False
            await self._reload(self.api.configuration)
            self._reloaded_at = time.monotonic()
            return True

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        body: Object | None,
        content_type: str,
    ) -> bytes:
        response = await self._open(
            method, path, query=query, body=body, content_type=content_type, patience=self._timeout
        )
        with _reaching(f"{method} {path}"):
            return await response.read()

    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        body: Object | None = None,
        content_type: str = "application/json",
        patience: float | aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """An answer whose body is not read yet."""
        own = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = await self.api.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            header_params={"Accept": "application/json", "Content-Type": content_type, **own},
            body=body,
            auth_settings=[] if self._token else ["BearerToken"],
        )
        if method != "GET":
            self._fence()
        with _reaching(f"{method} {path}"):
            response: aiohttp.ClientResponse = (await self.api.call_api(*request, _request_timeout=patience)).response
            if response.status < 300:
                return response
            data = await response.read()
        raise error_of(status=response.status, body=data, request=f"{method} {path}", headers=response.headers)


@contextmanager
def _reaching(request: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UnreachableError(f"{request}: {type(error).__name__}: {error}") from error


async def _lines(content: aiohttp.StreamReader, request: str) -> AsyncIterator[bytes]:
    rest = b""
    with _reaching(request):
        async for chunk in content.iter_any():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line
            if len(rest) > _LINE_LIMIT:
                yield rest
                rest = b""
    if rest:
        yield rest


def _selector(terms: Labels) -> str:
    return terms if isinstance(terms, str) else ",".join(f"{key}={value}" for key, value in terms.items())
