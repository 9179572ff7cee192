# SPDX-License-Identifier: Apache-2.0
"""A request that is answered with an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus


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


def unavailable(message: str, *, seconds: float = 5) -> Refusal:
    """503: try again."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, headers=_after(seconds))


def too_many(message: str, *, seconds: float) -> Refusal:
    """429: slow down."""
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, message, headers=_after(seconds))


def _after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
