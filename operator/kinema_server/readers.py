# SPDX-License-Identifier: Apache-2.0
"""Asks the pods that read workspaces; starts one where there is none.

The token of a reader follows from the server's own key and the job, so that every replica of the server knows it and
nobody has to keep it; the pod is told its digest alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from kinema_api.reading import READER_PORT
from kinema_kube import Kube
from kinema_kube.client import Object
from kinema_kube.errors import AlreadyExistsError, ConflictError, ForbiddenError, InvalidError, NotFoundError
from kinema_kube.resources import PODS
from kinema_server import metrics
from kinema_server.reader_pod import ANNOTATION_DIGEST, CONTAINER, NoReaderError, manifest, name_of
from kinema_server.refusal import Refusal, unavailable

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_TIMEOUT = httpx.Timeout(30.0, connect=3.0)


class Readers:
    """The readers of all jobs.

    Args:
        kube: where they run.
        key: file of the server's private key, from which their tokens follow.
        idle_seconds: for how long a reader waits for the next request.
        wait_seconds: for how long a request waits for a reader to start.
    """

    def __init__(self, kube: Kube, *, key: Path, idle_seconds: int, wait_seconds: float) -> None:
        self._kube = kube
        self._key = key
        self._idle_seconds = idle_seconds
        self._wait_seconds = wait_seconds
        # Readers are pods: no proxy of the environment is on the way to them.
        self._client = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False)

    async def close(self) -> None:
        """Close every connection; the pods end by themselves."""
        await self._client.aclose()

    @asynccontextmanager
    async def ask(
        self, job: Mapping[str, Any], path: str, *, query: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """The answer of a job's reader, its body not read yet.

        Raises:
            Refusal: 404, there is nothing to read; 503, the reader is still starting, or cannot.
        """
        token = await asyncio.to_thread(self._token, job)
        pod = await self._ready(job, digest=hashlib.sha256(token.encode()).hexdigest())
        url = httpx.URL(scheme="http", host=pod["status"]["podIP"], port=port_of(pod), path=path)
        request = self._client.build_request(
            "GET", url, params=dict(query), headers={**headers, "Authorization": f"Bearer {token}"}
        )
        try:
            answer = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            logger.warning("reader does not answer", extra={"pod": pod["metadata"]["name"], "error": repr(error)})
            raise unavailable("the pod that reads the workspace does not answer; try again") from error
        try:
            if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                message = (await answer.aread()).decode(errors="replace")[:1024]
                raise unavailable(f"the pod that reads the workspace failed: {message}")
            yield answer
        finally:
            await answer.aclose()

    def _token(self, job: Mapping[str, Any]) -> str:
        message = f"kinema reader {job['metadata']['uid']}".encode()
        return hmac.new(self._key.read_bytes(), message, hashlib.sha256).hexdigest()

    async def _ready(self, job: Mapping[str, Any], *, digest: str) -> Object:
        due = time.monotonic() + self._wait_seconds
        while True:
            pod = await self._found(job, digest=digest)
            if pod is not None and _is_ready(pod):
                return pod
            if time.monotonic() >= due:
                raise unavailable(_why(pod), seconds=_RETRY_SECONDS)
            await asyncio.sleep(_POLL_SECONDS)

    async def _found(self, job: Mapping[str, Any], *, digest: str) -> Object | None:
        """The job's reader as it is now; one that ended, or knows another token, goes and a new one comes."""
        metadata = job["metadata"]
        pod = await self._kube.find(PODS, name_of(job), namespace=metadata["namespace"])
        if pod is None:
            return await self._create(job, digest=digest)
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        known = (pod["metadata"].get("annotations") or {}).get(ANNOTATION_DIGEST) == digest
        if not pod["metadata"].get("deletionTimestamp") and (ended or not known):
            with suppress(NotFoundError, ConflictError):
                await self._kube.delete(PODS, name_of(job), namespace=metadata["namespace"], uid=pod["metadata"]["uid"])
        return pod if known and not ended else None

    async def _create(self, job: Mapping[str, Any], *, digest: str) -> Object | None:
        try:
            body = manifest(job, digest=digest, idle_seconds=self._idle_seconds)
            created = await self._kube.create(PODS, body, manager="kinema-server")
        except NoReaderError as error:
            raise Refusal(HTTPStatus.NOT_FOUND, str(error)) from error
        except AlreadyExistsError:
            return None
        except (ForbiddenError, InvalidError) as error:
            metrics.READERS.labels(result="refused").inc()
            # A quota, a policy of the namespace, or a server that was installed without this right.
            logger.warning("reader refused", extra={"pod": name_of(job), "error": str(error)})
            raise unavailable("the cluster refuses the pod that reads the workspace; the log says why") from error
        metrics.READERS.labels(result="created").inc()
        return created


def port_of(pod: Mapping[str, Any]) -> int:
    """Where a reader listens."""
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or []]
    return next((int(port["containerPort"]) for port in ports), READER_PORT)


def _is_ready(pod: Mapping[str, Any]) -> bool:
    status = pod.get("status") or {}
    conditions = {item["type"]: item["status"] for item in status.get("conditions") or []}
    leaves = pod["metadata"].get("deletionTimestamp")
    return bool(status.get("podIP")) and conditions.get("Ready") == "True" and not leaves


def _why(pod: Mapping[str, Any] | None) -> str:
    """Why a reader is not ready, as far as its pod tells."""
    status = (pod or {}).get("status") or {}
    containers = [item for item in status.get("containerStatuses") or [] if item.get("name") == CONTAINER]
    waiting = [(item.get("state") or {}).get("waiting") or {} for item in containers]
    scheduled = [item for item in status.get("conditions") or [] if item.get("type") == "PodScheduled"]
    reasons = [*waiting, *(item for item in scheduled if item.get("status") == "False")]
    told = next((f" ({item['reason']})" for item in reasons if item.get("reason")), "")
    return f"the pod that reads the workspace is starting{told}; try again"
