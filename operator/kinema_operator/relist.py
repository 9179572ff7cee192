# SPDX-License-Identifier: Apache-2.0
"""Lets kopf list anew where it would give up.

kopf (1.45) lists anew when a watch tells of a 410 in an event. A watch or a part of a list that is refused by the
status 410 ends its watcher, and with it the operator; so does any other error in a watch, for instance of etcd. All
of them mean the same: what was read so far leads no further.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp

log = logging.getLogger(__name__)

GONE = b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}\n'
"""The event by which a watch says that it must begin anew."""

_ERROR = b'{"type":"ERROR"'
_STATUS = 410


async def relist(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Middleware of the session that kopf watches by."""
    response = await handler(request)
    if request.url.query.get("watch") != "true":
        if response.status == _STATUS:
            response.release()
            # Of the errors that begin a list anew, the one that is not first tried again with the old token.
            raise aiohttp.ClientPayloadError(f"{request.url.path}: 410 Gone in the middle of a list")
        return response
    if response.status == _STATUS:
        # Read, so that its connection is free.
        await response.read()
        response.status = 200
        response.content = cast(aiohttp.StreamReader, _Refused(response.content))
    elif response.status == 200:
        response.content = cast(aiohttp.StreamReader, _Stream(response.content, request.url.path))
    return response


class _Wrapped:
    """A stream that is read in another way, and the same to whoever closes it."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)


class _Refused(_Wrapped):
    """The stream of a watch that was not opened."""

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        yield GONE


class _Stream(_Wrapped):
    """A watch in which every error is a 410, in whole lines."""

    def __init__(self, content: aiohttp.StreamReader, path: str) -> None:
        super().__init__(content)
        self._path = path

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        held = b""
        async for data in self._content.iter_chunked(size):
            *lines, held = (held + data).split(b"\n")
            for line in lines:
                if line.startswith(_ERROR):
                    log.info("watch of %s begins anew: %s", self._path, line[:500].decode(errors="replace"))
                    yield GONE
                    return
                yield line + b"\n"
