# SPDX-License-Identifier: Apache-2.0
"""GET .../{name}/samples and .../samples/{round}/{file}: the videos that a job's model made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Annotated

import httpx
from fastapi import APIRouter, Depends, Header, Path
from fastapi.responses import Response, StreamingResponse

from kinema_api.names import VERSION
from kinema_api.reading import Samples
from kinema_server import examples
from kinema_server.access import on_job
from kinema_server.lookup import find_job
from kinema_server.problems import documented
from kinema_server.refusal import Refusal, unavailable
from kinema_server.services import JobName, Namespace, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["workspace"])

_JOB = "/namespaces/{namespace}/videotrainingjobs/{name}"
_PASSED_ON = ("content-length", "content-range", "accept-ranges")
_VIDEO = {"video/mp4": {"schema": {"type": "string", "format": "binary"}, "example": "(the bytes of an MP4 file)"}}


@router.get(
    f"{_JOB}/samples",
    response_model=Samples,
    dependencies=[Depends(on_job("get"))],
    responses={**documented(), 200: {"content": {"application/json": {"example": examples.SAMPLES}}}},
)
async def get_samples(shared: Shared, namespace: Namespace, name: JobName) -> Response:
    """The videos that a job's model made: at the end, and while it was trained.

    As for `history`, a small pod reads the workspace: until it has started, the answer is 503 with `Retry-After`.
    """
    job = await find_job(shared.kube, namespace=namespace, name=name)
    async with shared.readers.ask(job, "/samples", query={}, headers={}) as answer:
        body = await answer.aread()
    if answer.status_code != HTTPStatus.OK:
        raise unavailable("the pod that reads the workspace is of another version; try again")
    return Response(body, media_type="application/json")


@router.get(
    f"{_JOB}/samples/{{round}}/{{file}}",
    response_class=Response,
    dependencies=[Depends(on_job("get"))],
    responses={
        **documented(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE),
        200: {"description": "The video.", "content": _VIDEO},
        206: {"description": "The part of it that `Range` asks for.", "content": _VIDEO},
    },
)
async def get_sample(
    shared: Shared,
    namespace: Namespace,
    name: JobName,
    round: Annotated[
        str, Path(pattern=r"^(final|[0-9]{1,12})$", description="`final`, or a step.", examples=["final"])
    ],
    file: Annotated[
        str,
        Path(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="A name of `samples`.", examples=["00-seed1.mp4"]
        ),
    ],
    range: Annotated[
        str, Header(max_length=64, description="Bytes that are wanted, for instance `bytes=0-1023`.")
    ] = "",
) -> Response:
    """One video."""
    job = await find_job(shared.kube, namespace=namespace, name=name)
    headers = {"Range": range} if range.isascii() and range.isprintable() and range else {}
    async with AsyncExitStack() as stack:
        asking = shared.readers.ask(job, f"/samples/{round}/{file}", query={}, headers=headers)
        answer = await stack.enter_async_context(asking)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise Refusal(HTTPStatus.NOT_FOUND, f"job {name!r} has no video {round}/{file}")
        passed = {key: answer.headers[key] for key in _PASSED_ON if key in answer.headers}
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise Refusal(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                "the video has no such range of bytes",
                headers={"Content-Range": answer.headers.get("content-range", "bytes */0")},
            )
        if answer.status_code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise unavailable("the pod that reads the workspace is of another version; try again")
        body = _body(answer, stack.pop_all())
    return StreamingResponse(body, status_code=answer.status_code, headers=passed, media_type="video/mp4")


async def _body(answer: httpx.Response, stack: AsyncExitStack) -> AsyncIterator[bytes]:
    async with stack:
        async for data in answer.aiter_raw():
            yield data
