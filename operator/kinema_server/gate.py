# SPDX-License-Identifier: Apache-2.0
"""Turns away what a pod posts too often, before anything else is done about it.

A stage that has gone wrong may post a thousand times a second. Refusing that must cost next to nothing, or everybody
else waits: no routing, no body, no review, no log line for each.
"""

from __future__ import annotations

import logging
import re
import time
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from kinema_server import metrics
from kinema_server.limits import Limiter
from kinema_server.observer import HEADERS, client_of
from kinema_server.problems import answer
from kinema_server.refusal import Refusal
from kinema_server.reviews import bearer_token
from kinema_server.routes.posts import POST_PATH

logger = logging.getLogger(__name__)

_POST = re.compile(re.sub(r"\{\w+\}", "[^/]+", POST_PATH))
_TOLD_SECONDS = 60.0
"""Between two log lines about what was turned away."""


class Gate:
    """Stands before everything; lets pass what is no post, and the posts of whoever keeps to the limit."""

    def __init__(self, app: ASGIApp, *, limiter: Limiter) -> None:
        self._app = app
        self._limiter = limiter
        self._count = metrics.REQUESTS.labels(
            method="POST", route=POST_PATH, code=str(int(HTTPStatus.TOO_MANY_REQUESTS))
        )
        self._held = 0
        """Posts that were turned away and not told of yet."""
        self._due = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refused(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        self._tell(scope)
        response = answer(refusal.code, refusal.message, path=scope["path"], headers={**HEADERS, **refusal.headers})
        await response(scope, receive, send)

    def _refused(self, scope: Scope) -> Refusal | None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _POST.fullmatch(scope["path"]):
            return None
        try:
            self._limiter.take(bearer_token(Headers(scope=scope)))
        except Refusal as refusal:
            # Without a token there is nobody to count: the route says what is missing.
            return refusal if refusal.code == HTTPStatus.TOO_MANY_REQUESTS else None
        return None

    def _tell(self, scope: Scope) -> None:
        self._count.inc()
        self._held += 1
        now = time.monotonic()
        if now < self._due:
            return
        logger.warning(
            "posts held back", extra={"count": self._held, "path": scope["path"], "client": client_of(scope)}
        )
        self._held, self._due = 0, now + _TOLD_SECONDS
