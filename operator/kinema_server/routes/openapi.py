# SPDX-License-Identifier: Apache-2.0
"""GET /openapi.json: the description of all this."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from kinema_server.access import known

router = APIRouter()


@router.get("/openapi.json", include_in_schema=False, dependencies=[Depends(known)])
async def get_openapi(request: Request) -> JSONResponse:
    """What the server offers; for whoever has a token of the cluster."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document)
