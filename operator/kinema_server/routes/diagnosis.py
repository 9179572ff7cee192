# SPDX-License-Identifier: Apache-2.0
"""GET .../{name}/diagnosis: what is wrong with a job, why, and what to do."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from kinema_api.base import Model
from kinema_api.names import VERSION
from kinema_api.status import AttemptState, Phase
from kinema_server import examples
from kinema_server.access import on_job
from kinema_server.lookup import find_job, status_of
from kinema_server.problems import documented
from kinema_server.services import JobName, Namespace, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["jobs"])


class Failure(Model):
    """An attempt that failed."""

    stage: str
    """Its stage."""
    attempt: int
    """Its number."""
    reason: str
    """One CamelCase word."""
    failure: str | None
    """The class of its failure, which decides what follows."""
    message: str
    """What the container said when it ended."""
    exit_code: int | None
    """Of the container that decided the end."""
    node: str
    """Where it ran."""
    finished_at: str | None
    """When it ended."""
    log_tail: str
    """The last lines of its log."""


class Diagnosis(Model):
    """What is wrong with a job."""

    phase: str
    """Where the job stands."""
    message: str
    """That, in a sentence."""
    diagnosis: str
    """What is wrong, why, and what to do about it; empty while all is well."""
    failures: list[Failure]
    """Attempts that failed, the newest first."""


@router.get(
    "/namespaces/{namespace}/videotrainingjobs/{name}/diagnosis",
    dependencies=[Depends(on_job("get"))],
    responses={**documented(), 200: {"content": {"application/json": {"example": examples.DIAGNOSIS}}}},
)
async def get_diagnosis(shared: Shared, namespace: Namespace, name: JobName) -> Diagnosis:
    """What is wrong with a job, why, and what to do; with the attempts that failed."""
    status = status_of(await find_job(shared.kube, namespace=namespace, name=name))
    failures = [
        Failure(
            stage=stage["name"],
            attempt=attempt["number"],
            reason=attempt.get("reason") or "",
            failure=attempt.get("failure"),
            message=attempt.get("message") or "",
            exit_code=attempt.get("exitCode"),
            node=attempt.get("node") or "",
            finished_at=attempt.get("finishedAt"),
            log_tail=attempt.get("logTail") or "",
        )
        for stage in status.get("stages") or []
        for attempt in stage.get("attempts") or []
        if attempt.get("state") == AttemptState.FAILED
    ]
    return Diagnosis(
        phase=status.get("phase") or Phase.PENDING.value,
        message=status.get("message") or "",
        diagnosis=status.get("diagnosis") or "",
        failures=sorted(failures, key=lambda failure: failure.finished_at or "", reverse=True),
    )
