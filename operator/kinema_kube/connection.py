# SPDX-License-Identifier: Apache-2.0
"""One way to an API server: credentials that are renewed, typed refusals, answers whole or line by line."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from kinema_kube.errors import UnauthorizedError, UnreachableError, error_of

Query = Mapping[str, str]
"""Parameters of a request; empty ones are left out."""
Body = Mapping[str, Any]

JSON = "application/json"
_LINE_LIMIT = 4 << 20
"""Bytes after which a line of a stream is cut: etcd keeps no object that is larger."""
_RELOAD_INTERVAL = 10.0
"""Seconds between two reads of credentials that the API server refused."""


class Connection:
    """Sends requests to one API server."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        reload: Callable[[Configuration], Awaitable[None]] | None,
        request_timeout: float,
        user_agent: str,
    ) -> None:
        self.api = ApiClient(configuration)
        self.api.user_agent = user_agent
        self._reload = reload
        self._reloaded_at = float("-inf")
        self._reloading = asyncio.Lock()
        self._timeout = request_timeout
        self._fence: Callable[[], None] = lambda: None
        self._token = ""
        self._bare: ApiClient | None = None

    def fenced(self, fence: Callable[[], None]) -> Connection:
        """The same connection; `fence` is asked right before each request that changes something, and may raise."""
        other = copy.copy(self)
        other._fence = fence
        return other

    def in_name_of(self, token: str) -> Connection:
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

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Body | None = None,
        content_type: str = JSON,
    ) -> dict[str, Any]:
        """The JSON object that a request is answered by.

        Raises:
            KubeError: what the API server refused, by kind; or that it does not answer.
        """
        data = await self.read(method, path, query=query, body=body, content_type=content_type)
        answer: dict[str, Any] = json.loads(data)
        return answer

    async def read(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Body | None = None,
        content_type: str = JSON,
    ) -> bytes:
        """The answer to a request as it came.

        Raises:
            KubeError: as `request`.
        """
        started = time.monotonic()
        try:
            return await self._send(method, path, query=query, body=body, content_type=content_type)
        except UnauthorizedError:
            # The request was not carried out, so that trying again is safe whatever its method.
            if not await self._renew(since=started):
                raise
        return await self._send(method, path, query=query, body=body, content_type=content_type)

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Query, quiet: float | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer that may go on for long, without their ends.

        Args:
            path: what to GET.
            query: its parameters.
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
        self, method: str, path: str, *, query: Query | None, body: Body | None, content_type: str
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
        query: Query | None,
        body: Body | None = None,
        content_type: str = JSON,
        patience: float | aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """An answer whose body is not read yet."""
        own = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = await self.api.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            header_params={"Accept": JSON, "Content-Type": content_type, **own},
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
