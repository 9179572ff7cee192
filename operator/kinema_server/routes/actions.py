# SPDX-License-Identifier: Apache-2.0
"""POST .../{name}/suspend, /resume, /cancel, /retry: what people ask of a job that exists.

The change is made in the caller's name, with the caller's token: the server itself may not change a job.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from kinema_api.base import Model
from kinema_api.names import VERSION, Stage
from kinema_kube.actions import Action, ActionError, patch
from kinema_kube.errors import ConflictError
from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_server import examples
from kinema_server.access import Granted, on_job
from kinema_server.behalf import speaking
from kinema_server.lookup import find_job
from kinema_server.problems import documented
from kinema_server.refusal import Refusal
from kinema_server.rows import Row, row_of
from kinema_server.services import JobName, Namespace, Services, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["actions"])

MANAGER = "kinema-server-action"
_JOB = "/namespaces/{namespace}/videotrainingjobs/{name}"
_TRIES = 5
"""Of a change that somebody else's change of the job comes between."""
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **documented(HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT),
    200: {
        "description": "The job does what was asked, or did so already.",
        "content": {"application/json": {"example": examples.ROW}},
    },
}
MayPatch = Annotated[Granted, Depends(on_job("get", "patch"))]


class Retry(Model):
    """From where to run again."""

    stage: Stage | None = None
    """The first stage to run again; the one that failed when left out."""


@router.post(f"{_JOB}/suspend", responses=_RESPONSES)
async def suspend_job(shared: Shared, granted: MayPatch, namespace: Namespace, name: JobName) -> Row:
    """Stop what runs and start nothing until the job is resumed; training goes on from its last complete checkpoint."""
    return await _act(shared, granted, Action.SUSPEND, namespace=namespace, name=name)


@router.post(f"{_JOB}/resume", responses=_RESPONSES)
async def resume_job(shared: Shared, granted: MayPatch, namespace: Namespace, name: JobName) -> Row:
    """Let a suspended job go on."""
    return await _act(shared, granted, Action.RESUME, namespace=namespace, name=name)


@router.post(f"{_JOB}/cancel", responses=_RESPONSES)
async def cancel_job(shared: Shared, granted: MayPatch, namespace: Namespace, name: JobName) -> Row:
    """End a job for good: what runs is stopped, what was published stays."""
    return await _act(shared, granted, Action.CANCEL, namespace=namespace, name=name)


@router.post(f"{_JOB}/retry", responses=_RESPONSES)
async def retry_job(
    shared: Shared, granted: MayPatch, namespace: Namespace, name: JobName, body: Retry | None = None
) -> Row:
    """Run a job that has ended again, from a stage on."""
    stage = body.stage if body is not None else None
    return await _act(shared, granted, Action.RETRY, namespace=namespace, name=name, stage=stage)


async def _act(
    shared: Services, granted: Granted, action: Action, *, namespace: str, name: str, stage: Stage | None = None
) -> Row:
    for remaining in reversed(range(_TRIES)):
        job = await find_job(shared.kube, namespace=namespace, name=name)
        try:
            change = patch(job, action, stage=stage)
        except ActionError as error:
            raise Refusal(HTTPStatus.CONFLICT, str(error)) from error
        if change is None:
            return row_of(job)
        metadata = job["metadata"]
        try:
            async with speaking(shared.kube, granted.caller) as kube:
                return row_of(
                    await kube.merge_patch(
                        VIDEO_TRAINING_JOBS,
                        name,
                        change,
                        namespace=namespace,
                        resource_version=metadata["resourceVersion"],
                        uid=metadata["uid"],
                        manager=MANAGER,
                    )
                )
        except ConflictError as error:
            if not remaining:
                raise Refusal(HTTPStatus.CONFLICT, "the job changes all the time; try again") from error
    raise AssertionError("unreachable")
