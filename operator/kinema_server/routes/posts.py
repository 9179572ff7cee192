# SPDX-License-Identifier: Apache-2.0
"""Takes progress from running stages, in the protocol of Kubeflow's trainer."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, Security
from pydantic import ValidationError

from kinema_api import names
from kinema_api.names import Stage
from kinema_api.progress import BODY_LIMIT, ProgressPost
from kinema_server import examples, metrics
from kinema_server.access import BEARER
from kinema_server.binding import Target, speaks_for
from kinema_server.figures import progress_of
from kinema_server.problems import documented
from kinema_server.refusal import Refusal
from kinema_server.reviews import bearer_token
from kinema_server.services import JobName, Namespace, Services, Shared

router = APIRouter(tags=["progress"])

_ATTEMPT_MAX = 1_000_000
_DRAINED_BYTES = 32 << 20
"""Of a body that is too large so much is read all the same: whoever still sends would not hear the answer."""

POST_PATH = "/v1alpha1/namespaces/{namespace}/videotrainingjobs/{name}/stages/{stage}/attempts/{attempt}/progress"


_BODY = {"$ref": "#/components/schemas/ProgressPost"}


@router.post(
    POST_PATH,
    dependencies=[Security(BEARER)],
    response_class=Response,
    responses={
        **documented(
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.TOO_MANY_REQUESTS,
        ),
        200: {
            "description": "The post was taken; the answer echoes it.",
            "content": {"application/json": {"schema": _BODY, "example": examples.POST}},
        },
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _BODY, "example": examples.POST}},
        }
    },
)
async def post_progress(
    request: Request,
    shared: Shared,
    namespace: Namespace,
    name: JobName,
    stage: Stage,
    attempt: Annotated[int, Path(ge=1, le=_ATTEMPT_MAX)],
) -> Response:
    """Take what a running stage says of itself, in the protocol of Kubeflow's trainer.

    The token is the pod's own, made for the audience `progress.kinema.dev`.
    """
    received = datetime.now(UTC)
    token = bearer_token(request.headers)
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
        identity = await shared.reviews.identify(token, audience=names.PROGRESS_AUDIENCE)
        uid = await speaks_for(shared.kube, identity, target)
    except Refusal:
        metrics.VERDICTS.labels(result="refused").inc()
        raise
    metrics.VERDICTS.labels(result="granted").inc()
    shared.verdicts.remember(token=token, path=path, uid=uid)
    return uid


async def _limited_body(request: Request) -> bytes:
    body, read = bytearray(), 0
    async for chunk in request.stream():
        read += len(chunk)
        if read <= BODY_LIMIT:
            body += chunk
        elif read > _DRAINED_BYTES:
            break
    if read > BODY_LIMIT:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {BODY_LIMIT} bytes")
    return bytes(body)


def _parse(body: bytes) -> ProgressPost:
    try:
        return ProgressPost.model_validate_json(body, strict=True)
    except ValidationError as error:
        faults = error.errors()[:8]
        if any(fault["type"] == "json_invalid" for fault in faults):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {faults[0]['msg']}") from error
        text = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults)
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is no progress: {text}") from error
