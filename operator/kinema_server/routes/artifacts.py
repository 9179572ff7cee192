# SPDX-License-Identifier: Apache-2.0
"""GET .../{name}/artifacts: what the stages of a job made, and where it lies."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from kinema_api.base import Model
from kinema_api.names import VERSION
from kinema_server import examples
from kinema_server.access import on_job
from kinema_server.lookup import find_job, status_of
from kinema_server.problems import documented
from kinema_server.services import JobName, Namespace, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["jobs"])


class Artifact(Model):
    """What one stage made."""

    stage: str
    """The stage."""
    uri: str
    """Where it lies."""
    key: str | None
    """What it is found by; null for what belongs to this job alone."""
    reused: bool
    """Whether another job, or an earlier run, had made it."""
    counts: dict[str, int]
    """What the stage did, for instance {clips: 4, encoded: 2}."""


class Artifacts(Model):
    """What the stages of a job made."""

    workspace: str | None
    """The job's own folder: checkpoints, metrics, samples; null before the job started."""
    items: list[Artifact]
    """In the order of the stages."""


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}/artifacts",
    dependencies=[Depends(on_job("get"))],
    responses={**documented(), 200: {"content": {"application/json": {"example": examples.ARTIFACTS}}}},
)
async def get_artifacts(shared: Shared, namespace: Namespace, name: JobName) -> Artifacts:
    """What the stages of a job made, and where it lies."""
    status = status_of(await find_job(shared.kube, namespace=namespace, name=name))
    keys = (status.get("resolved") or {}).get("keys") or {}
    return Artifacts(
        workspace=status.get("workspace"),
        items=[
            Artifact(
                stage=stage["name"],
                uri=stage["artifact"],
                key=keys.get(stage["name"]),
                reused=stage.get("reason") == "ArtifactExists",
                counts=stage.get("counts") or {},
            )
            for stage in status.get("stages") or []
            if stage.get("artifact")
        ],
    )
