# SPDX-License-Identifier: Apache-2.0
"""What the server answers when it does not do what was asked: a Kubernetes Status."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

_REASONS: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "BadRequest",
    HTTPStatus.UNAUTHORIZED: "Unauthorized",
    HTTPStatus.FORBIDDEN: "Forbidden",
    HTTPStatus.NOT_FOUND: "NotFound",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowed",
    HTTPStatus.CONFLICT: "Conflict",
    HTTPStatus.GONE: "Expired",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestEntityTooLarge",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Invalid",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailable",
}


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of the program
    """A request that is answered with an error."""

    def __init__(self, code: HTTPStatus, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


def unauthorized(message: str) -> Refusal:
    """401: nobody known asks."""
    return Refusal(HTTPStatus.UNAUTHORIZED, message, headers={"WWW-Authenticate": "Bearer"})


def forbidden(message: str) -> Refusal:
    """403: whoever asks may not."""
    return Refusal(HTTPStatus.FORBIDDEN, message)


def unavailable(message: str) -> Refusal:
    """503: try again."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, headers={"Retry-After": "5"})


def status_object(code: int, message: str) -> dict[str, Any]:
    """A Kubernetes Status."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": _REASONS.get(code, "Unknown"),
        "code": int(code),
    }
