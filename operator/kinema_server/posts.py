# SPDX-License-Identifier: Apache-2.0
"""Takes progress from running stages, in the protocol of Kubeflow's trainer."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import ValidationError

from kinema_api import names
from kinema_api.names import Stage
from kinema_api.progress import BODY_LIMIT, ProgressPost
from kinema_server import metrics
from kinema_server.binding import Target, speaks_for
from kinema_server.figures import progress_of
from kinema_server.refusal import Refusal
from kinema_server.reviews import bearer_token, identify
from kinema_server.services import PathName, Services, Shared

router = APIRouter()

_ATTEMPT_MAX = 1_000_000

POST_PATH = "/v1alpha1/namespaces/{namespace}/videotrainingjobs/{name}/stages/{stage}/attempts/{attempt}/progress"


@router.post(POST_PATH)
async def post_progress(
    request: Request,
    shared: Shared,
    namespace: PathName,
    name: PathName,
    stage: Stage,
    attempt: Annotated[int, Path(ge=1, le=_ATTEMPT_MAX)],
) -> Response:
    """Take a post; the answer echoes it."""
    received = datetime.now(UTC)
    token = bearer_token(request)
    target = Target(namespace=namespace, job=name, stage=stage, attempt=attempt)
    uid = await _job_uid(shared, token=token, path=request.url.path, target=target)
    body = await _limited_body(request)
    progress = progress_of(_parse(body).trainer_status, stage=stage, attempt=attempt, received=received)
    try:
        wish = await shared.writer.submit(namespace=namespace, name=name, uid=uid, progress=progress)
    except Refusal:
        shared.verdicts.forget(token=token, path=request.url.path)
        raise
    headers = {names.HEADER_PROFILE: wish} if wish else None
    return Response(body, media_type="application/json", headers=headers)


async def _job_uid(shared: Services, *, token: str, path: str, target: Target) -> str:
    remembered = shared.verdicts.find(token=token, path=path)
    if remembered is not None:
        metrics.VERDICTS.labels(result="remembered").inc()
        return remembered
    try:
        identity = await identify(shared.kube, token, audience=names.PROGRESS_AUDIENCE)
        uid = await speaks_for(shared.kube, identity, target)
    except Refusal:
        metrics.VERDICTS.labels(result="refused").inc()
        raise
    metrics.VERDICTS.labels(result="granted").inc()
    shared.verdicts.remember(token=token, path=path, uid=uid)
    return uid


async def _limited_body(request: Request) -> bytes:
    too_large = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {BODY_LIMIT} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > BODY_LIMIT:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise too_large
    return bytes(body)


def _parse(body: bytes) -> ProgressPost:
    try:
        return ProgressPost.model_validate_json(body)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in error.errors()[:8]]
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is no progress: {'; '.join(faults)}") from error
