# SPDX-License-Identifier: Apache-2.0
"""Posts progress to the server from a background thread; whatever the server does, the stage goes on."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from kinema_api.names import HEADER_PROFILE
from kinema_api.progress import ENV_CA, ENV_TOKEN, ENV_URL, ProgressPost, TrainerStatus

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two posts, as in Kubeflow's own client."""
TIMEOUT = 10.0
BACKOFF_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where to post. CA and token are read again for each post, since both are renewed while a pod runs."""

    url: str
    ca: Path | None
    token: Path | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Target | None:
        """What the operator put into the environment; None outside a cluster."""
        url = environment.get(ENV_URL)
        if not url:
            return None
        paths = (environment.get(name) for name in (ENV_CA, ENV_TOKEN))
        ca, token = (Path(path) if path else None for path in paths)
        return cls(url=url, ca=ca, token=token)

    def post(self, status: TrainerStatus) -> str | None:
        """Post once; the wish to profile that the answer carries, if it does.

        Raises:
            OSError, HTTPException: the server, its certificate or a file is not as it should be.
        """
        body = ProgressPost(trainer_status=status).model_dump_json(by_alias=True, exclude_none=True)
        request = urllib.request.Request(self.url, data=body.encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        if self.token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.token.read_text().strip()}")
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if self.url.startswith("https:"):
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as response:
            response.read()
            wish: str | None = response.headers.get(HEADER_PROFILE)
            return wish


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Never follow: the token is for this server alone."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Poster:
    """Keeps the newest status and posts it at most every `interval` seconds.

    Args:
        target: the server.
        interval: seconds between two posts.
        wished: hears, in another thread, which wish to profile an answer carries.
    """

    def __init__(
        self, target: Target, *, interval: float = INTERVAL, wished: Callable[[str], None] = lambda text: None
    ) -> None:
        self._target = target
        self._wished = wished
        self._interval = interval
        self._changed = threading.Condition()
        self._pending: TrainerStatus | None = None
        self._urgent = False
        self._closing = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def put(self, status: TrainerStatus, *, urgent: bool = False) -> None:
        """Replace what waits to be posted; `urgent` skips the wait, though not that after a failure."""
        with self._changed:
            self._pending = status
            self._urgent = self._urgent or urgent
            self._changed.notify()

    def close(self, *, timeout: float = TIMEOUT) -> None:
        """Post what still waits, once, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        due = 0.0
        while (status := self._next(due)) is not None:
            due = time.monotonic() + (self._interval if self._send(status) else self._backoff())

    def _next(self, due: float) -> TrainerStatus | None:
        """The status to post once it is due; None at the end."""
        with self._changed:
            while True:
                wait = due - time.monotonic()
                ready = wait <= 0 or self._closing or (self._urgent and not self._failures)
                if self._pending is not None and ready:
                    status, self._pending, self._urgent = self._pending, None, False
                    return status
                if self._closing:
                    return None
                self._changed.wait(wait if self._pending is not None else None)

    def _backoff(self) -> float:
        return min(BACKOFF_MAX, self._interval * 2.0 ** min(self._failures, 10))

    def _send(self, status: TrainerStatus) -> bool:
        try:
            wish = self._target.post(status)
        except (OSError, HTTPException, ValueError) as error:
            self._failures += 1
            if self._failures == 1:
                logger.warning("progress is not shown: %s: %s; the stage goes on", self._target.url, error)
            with self._changed:
                # Keep it for the next try unless something newer came.
                if self._pending is None and not self._closing:
                    self._pending = status
            return False
        if self._failures:
            logger.info("progress is shown again")
        self._failures = 0
        if wish is not None:
            self._wished(wish)
        return True
