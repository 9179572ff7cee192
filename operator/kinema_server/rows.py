# SPDX-License-Identifier: Apache-2.0
"""Answers to reads: what a list shows of a job, and the job without its bookkeeping."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from kinema_api.base import Model
from kinema_server.figures import duration, moment_of


class Row(Model):
    """One job, in short."""

    namespace: str
    """Its namespace."""
    name: str
    """Its name."""
    uid: str
    """Its uid."""
    model: str
    """The model that it trains."""
    phase: str
    """Pending, Running, Suspended, Succeeded, Failed or Cancelled."""
    stage: str | None
    """The stage that runs, or that the job ended in."""
    progress: str | None
    """Of the stage, for instance 42%."""
    eta: str | None
    """Time that is left of the stage, for instance 3h12m."""
    loss: str | None
    """Training loss of the last step."""
    restarts: int
    """Failed attempts over all stages."""
    message: str
    """Where the job stands, in a sentence."""
    created_at: str
    """When the job was created."""


class Listed(Row):
    """One job of a list."""

    age: str
    """How long ago it was created."""


class Listing(Model):
    """A page of jobs."""

    items: list[Listed]
    """The jobs of this page."""
    next: str
    """Send it as `continue` to get the next page; empty on the last."""
    remaining: int | None
    """Jobs after this page, where the API server knows."""


def listed(job: Mapping[str, Any], *, now: datetime) -> Listed:
    """What a list shows of a job."""
    row = row_of(job)
    created = moment_of(row.created_at)
    return Listed(**dict(row), age=duration((now - created).total_seconds()) if created else "")


def row_of(job: Mapping[str, Any]) -> Row:
    """A job in short."""
    metadata, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    progress = running_progress(job) or {}
    return Row(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        model=(spec.get("model") or {}).get("name") or "",
        phase=status.get("phase") or "Pending",
        stage=status.get("stage"),
        progress=progress.get("percent") or None,
        eta=progress.get("eta"),
        loss=progress.get("loss"),
        restarts=status.get("restarts") or 0,
        message=status.get("message") or "",
        created_at=metadata.get("creationTimestamp") or "",
    )


def running_progress(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the job's stage said last; None when what was said is of another stage."""
    status = job.get("status") or {}
    progress: Mapping[str, Any] | None = status.get("progress")
    if progress is None or (status.get("stage") and progress.get("stage") != status["stage"]):
        return None
    return progress


def whole(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job as stored, without `managedFields`."""
    metadata = {key: value for key, value in job["metadata"].items() if key != "managedFields"}
    return {**job, "metadata": metadata}


class Whole(BaseModel):
    """A job as the cluster stores it, without `managedFields`."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    metadata: dict[str, Any]
    """Name, namespace, uid, resourceVersion and what else Kubernetes keeps of an object."""
    spec: dict[str, Any] | None = None
    """What was asked for."""
    status: dict[str, Any] | None = None
    """What the operator answers; missing before it has looked at the job."""
