# SPDX-License-Identifier: Apache-2.0
"""Health of the process, for kubelet."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from kinema_kube.errors import KubeError
from kinema_server.refusal import unavailable
from kinema_server.services import Shared

logger = logging.getLogger(__name__)

router = APIRouter()


@router.get("/healthz", include_in_schema=False)
async def healthz() -> PlainTextResponse:
    """The process answers."""
    return PlainTextResponse("ok")


@router.get("/readyz", include_in_schema=False)
async def readyz(shared: Shared) -> PlainTextResponse:
    """The API server answers too."""
    try:
        await shared.kube.raw("/version")
    except KubeError as error:
        logger.warning("not ready", extra={"error": str(error)})
        raise unavailable("the Kubernetes API does not answer") from error
    return PlainTextResponse("ok")
