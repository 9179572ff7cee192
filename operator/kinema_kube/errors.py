# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses, by kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any


class KubeError(Exception):
    """A request that the API server did not fulfil."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        """What the API server said."""
        self.status = status
        """The HTTP status; 0 when no answer came."""
        self.reason = reason
        """The API's word for it, for instance AlreadyExists."""
        self.details = dict(details or {})
        """`details` of the API's Status: the object, and the causes field by field."""
        self.retry_after = retry_after
        """Seconds after which the API server asks to try again; None when it said nothing."""


class BadRequestError(KubeError):
    """400: the request itself is malformed."""


class UnauthorizedError(KubeError):
    """401: the API server does not know who asks."""


class ForbiddenError(KubeError):
    """403: the account may not do this."""


class NotFoundError(KubeError):
    """404: no such object, or no such resource."""


class ConflictError(KubeError):
    """409: the object has changed, a precondition does not hold, or another manager owns a field."""


class AlreadyExistsError(ConflictError):
    """409: there is an object of that name."""


class GoneError(KubeError):
    """410: a continue token or resource version is too old."""


class InvalidError(KubeError):
    """422: validation refused the object; the message names the field."""


class TooManyRequestsError(KubeError):
    """429: slow down; `retry_after` says for how long."""


class ServerError(KubeError):
    """5xx: the API server failed."""


class UnreachableError(KubeError):
    """No answer: connection refused or lost, TLS failure, time-out. The request may have been carried out."""


_BY_STATUS: Mapping[int, type[KubeError]] = {
    HTTPStatus.BAD_REQUEST: BadRequestError,
    HTTPStatus.UNAUTHORIZED: UnauthorizedError,
    HTTPStatus.FORBIDDEN: ForbiddenError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.GONE: GoneError,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidError,
    HTTPStatus.TOO_MANY_REQUESTS: TooManyRequestsError,
}


def error_of(*, status: int, body: bytes, request: str, headers: Mapping[str, str]) -> KubeError:
    """The error that an answer stands for.

    Args:
        status: HTTP status, 300 or more.
        body: what came with it: a Kubernetes Status, or any text.
        request: method and path, for the message of an answer that carries none.
        headers: of the answer; Retry-After is read.
    """
    answer = _status_object(body)
    reason = str(answer.get("reason") or "")
    message = (
        str(answer.get("message") or "") or f"{request}: HTTP {status} {body[:200].decode(errors='replace')}".strip()
    )
    fallback = ServerError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else KubeError
    kind = AlreadyExistsError if reason == "AlreadyExists" else _BY_STATUS.get(status, fallback)
    details = answer.get("details")
    details = details if isinstance(details, dict) else {}
    return kind(message, status=status, reason=reason, details=details, retry_after=_retry_after(headers, details))


def _status_object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _retry_after(headers: Mapping[str, str], details: Mapping[str, Any]) -> float | None:
    value = headers.get("Retry-After") or details.get("retryAfterSeconds")
    try:
        return None if value is None else max(0.0, float(value))
    except (TypeError, ValueError):
        return None
