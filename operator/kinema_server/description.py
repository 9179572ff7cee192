# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of the server."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kinema_api.names import HEADER_TOKEN
from kinema_api.progress import ProgressPost
from kinema_server.problems import Problem

TAGS = {
    "jobs": "Where jobs stand. Streams, here and of logs, are server-sent events and resume by `Last-Event-ID`.",
    "logs": "What pods write.",
    "actions": "What people ask of a job. Changes are made in the caller's name, with the caller's token.",
    "workspace": "What lies in a job's folder; a small pod with the job's account reads it.",
    "progress": "What running stages say of themselves.",
}
_TEXT = f"""\
Every request carries `Authorization: Bearer TOKEN`, a token that the cluster's API server accepts; one that comes
through the API server's own proxy, which keeps that header for itself, carries `{HEADER_TOKEN}: TOKEN`. Whether its
holder may do what is asked is decided by the cluster's own rules, on the same verbs that kubectl would need; the
answers are remembered for a few seconds. Errors are problem details (RFC 9457).
"""
_BESIDE: tuple[type[BaseModel], ...] = (Problem, ProgressPost)
"""Models that routes name by hand."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The document; made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="Kinema",
            version=version("kinema-operator"),
            summary="Training of video-generation models: where jobs stand, and what can be asked of them.",
            description=_TEXT,
            routes=app.routes,
            tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        )
        _, beside = models_json_schema(
            [(model, "validation") for model in _BESIDE], by_alias=True, ref_template="#/components/schemas/{model}"
        )
        schemas = document["components"]["schemas"]
        schemas.update(beside["$defs"])
        # FastAPI's own shape of errors: ours is Problem.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for operations in document["paths"].values():
            for operation in operations.values():
                done = operation["responses"]["200"]
                done["description"] = done["description"].replace("Successful Response", "What was asked for.")
        app.openapi_schema = document
    return app.openapi_schema
