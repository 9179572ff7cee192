# SPDX-License-Identifier: Apache-2.0
"""What kopf is shown of a watch that has come to nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kinema_operator.relist import GONE, relist

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ADDED = b'{"type":"ADDED","object":{"metadata":{"labels":{"a":"b"}}}}\n'
BROKEN = b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd is gone"}}\n'
PATH = "/apis/batch/v1/jobs"


async def read(handler: Handler, query: str) -> tuple[int, bytes]:
    """What kopf would read, as it reads it."""
    app = web.Application()
    app.router.add_get(PATH, handler)
    async with TestServer(app) as server, aiohttp.ClientSession(middlewares=[relist]) as session:
        response = await session.request("GET", server.make_url(PATH + query))
        async with response:
            return response.status, b"".join([data async for data in response.content.iter_chunked(2**20)])


def stream(*chunks: bytes, whole: bool = True) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0)
        if not whole:
            assert request.transport is not None
            request.transport.close()
        return response

    return handle


async def gone(_: web.Request) -> web.Response:
    return web.json_response({"kind": "Status", "code": 410}, status=410)


def test_a_refused_watch_says_so_in_an_event() -> None:
    assert asyncio.run(read(gone, "?watch=true")) == (200, GONE)
    event = json.loads(GONE)
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


def test_a_refused_part_of_a_list_begins_the_list_anew() -> None:
    with pytest.raises(aiohttp.ClientPayloadError, match=PATH):
        asyncio.run(read(gone, "?limit=500&continue=old"))


def test_events_pass_as_they_are() -> None:
    halves = (ADDED[:20], ADDED[20:] + ADDED)
    assert asyncio.run(read(stream(*halves), "?watch=true")) == (200, ADDED * 2)


def test_any_error_of_a_watch_begins_it_anew() -> None:
    assert asyncio.run(read(stream(ADDED, BROKEN[:30], BROKEN[30:], ADDED), "?watch=true")) == (200, ADDED + GONE)


def test_a_line_that_was_cut_is_no_event() -> None:
    assert asyncio.run(read(stream(ADDED, ADDED[:30]), "?watch=true")) == (200, ADDED)


def test_other_refusals_pass() -> None:
    async def forbidden(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "code": 403}, status=403)

    for query in ("?watch=true", "?limit=500"):
        status, body = asyncio.run(read(forbidden, query))
        assert (status, json.loads(body)["code"]) == (403, 403)
