# SPDX-License-Identifier: Apache-2.0
"""What the server answers when it does not do what was asked: problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from kinema_api.base import Model

MEDIA_TYPE = "application/problem+json"

_REASONS: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "BadRequest",
    HTTPStatus.UNAUTHORIZED: "Unauthorized",
    HTTPStatus.FORBIDDEN: "Forbidden",
    HTTPStatus.NOT_FOUND: "NotFound",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowed",
    HTTPStatus.CONFLICT: "Conflict",
    HTTPStatus.GONE: "Expired",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestEntityTooLarge",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "RangeNotSatisfiable",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Invalid",
    HTTPStatus.TOO_MANY_REQUESTS: "TooManyRequests",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailable",
}

_WHEN: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "The request is malformed.",
    HTTPStatus.UNAUTHORIZED: "There is no token, or it is good for nobody.",
    HTTPStatus.FORBIDDEN: "The cluster's own rules do not let the caller do this.",
    HTTPStatus.NOT_FOUND: "There is no such job, or nothing of this kind of it.",
    HTTPStatus.CONFLICT: "The job is in no state to do this.",
    HTTPStatus.GONE: "The `continue` token is too old: list again from the start.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "The file has no such range of bytes.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A parameter or the body is not valid.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests of one caller: wait as long as `Retry-After` says.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A fault of the server.",
    HTTPStatus.SERVICE_UNAVAILABLE: "What the server needs does not answer yet: try again after `Retry-After`.",
}

_ALWAYS = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)


class Problem(Model):
    """Why a request was not fulfilled (RFC 9457)."""

    type: str = "about:blank"
    """The status says what kind of problem it is."""
    title: str
    """The status in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What was wrong and what to do, in a sentence."""
    instance: str
    """The path that was asked for."""
    reason: str
    """The word that the Kubernetes API has for it, for programs."""


def problem(code: int, detail: str, *, path: str) -> Problem:
    """The problem of a status."""
    status = HTTPStatus(code)
    return Problem(
        title=status.phrase, status=code, detail=detail, instance=path, reason=_REASONS.get(code, status.name.title())
    )


def answer(code: int, detail: str, *, path: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response that tells a problem."""
    return JSONResponse(
        problem(code, detail, path=path).wire(), status_code=code, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def documented(*codes: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The refusals of an operation, for its documentation: those that every one has, and `codes`."""
    return {int(code): _response(code) for code in sorted({*_ALWAYS, *codes})}


def _response(code: HTTPStatus) -> dict[str, Any]:
    example = problem(code, _WHEN[code], path="/v1alpha1/namespaces/team/videotrainingjobs/wan").wire()
    schema = {"$ref": "#/components/schemas/Problem"}
    response: dict[str, Any] = {
        "description": _WHEN[code],
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }
    if code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
        }
    if code == HTTPStatus.UNAUTHORIZED:
        response["headers"] = {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}}
    return response
