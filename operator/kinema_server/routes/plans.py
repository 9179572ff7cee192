# SPDX-License-Identifier: Apache-2.0
"""POST .../plan: what a job would do and need, before anything is booked. Nothing is created."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query
from pydantic import Field, ValidationError

from kinema_api.base import Model
from kinema_api.forecast import MFU, Forecast, Pace, StagePlan, forecast
from kinema_api.job import JobSpec
from kinema_api.names import API_VERSION, JOB_KIND, VERSION, Stage
from kinema_api.pool import PoolSpec
from kinema_api.refusal import PlanError
from kinema_kube.errors import AlreadyExistsError, BadRequestError, InvalidError
from kinema_kube.resources import TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_server import examples
from kinema_server.access import Granted, in_namespace
from kinema_server.behalf import speaking
from kinema_server.problems import documented
from kinema_server.services import Namespace, Shared

router = APIRouter(prefix=f"/{VERSION}", tags=["actions"])


class PlannedStage(Model):
    """A stage that would run."""

    stage: Stage
    """The stage."""
    pool: str | None
    """The pool that it runs on; null where any node will do."""
    pods: int
    """Pods that run it."""
    devices: int
    """Accelerators of a pod."""


class Training(Model):
    """How the training would be spread, and what it would take."""

    steps: int
    """Optimizer steps."""
    processes: int
    """One an accelerator."""
    layout: dict[str, int]
    """The size of each axis."""
    memory: dict[str, int]
    """Bytes that a process needs in the pass that takes most: the total, and what holds them."""
    device_memory: int | None
    """Bytes of a device of the pool; null where the pool does not say."""
    samples_per_step: int
    """Clips of a step."""
    tflop_per_step: float
    """Operations of a step over all processes, in 1e12, what is computed again included."""
    step_seconds: float | None
    """Time of a step; null where nobody knows."""
    seconds: float | None
    """Time of all steps."""
    pace: str
    """Where the time of a step comes from; or what is missing to tell it."""
    accelerator_hours: float | None
    """Accelerators times hours; null on a cpu pool, and without a time."""
    cost: float | None
    """Of these accelerator-hours; null where the pool names no price."""
    price_per_hour: float | None
    """Of all accelerators of the training; null where the pool names no price."""
    currency: str | None
    """ISO 4217 code of the price."""
    notes: list[str]
    """What these numbers leave out."""


class Plan(Model):
    """What a job would do and need."""

    accepted: bool
    """Whether the cluster would take the job, and the job could run."""
    reason: str
    """One CamelCase word: why not; empty when it is accepted."""
    message: str
    """What is wrong and what to do, in a sentence; empty when it is accepted."""
    stages: list[PlannedStage]
    """In the order in which they would run."""
    training: Training | None
    """How the training would be spread, and what it would take."""


class Manifest(Model):
    """A VideoTrainingJob, as kubectl applies it; written in JSON."""

    api_version: str = API_VERSION
    """kinema.dev/v1alpha1."""
    kind: str = JOB_KIND
    """VideoTrainingJob."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """A name, if it has one."""
    spec: dict[str, Any]
    """What is asked for; the reference of the resource has every field."""


def paced(
    step_seconds: Annotated[
        float | None, Query(alias="stepSeconds", gt=0, le=1e6, description="Seconds of a measured step, for the time.")
    ] = None,
    peak_tflops: Annotated[
        float | None, Query(alias="peakTflops", gt=0, le=1e6, description="Peak of one device, where it is unknown.")
    ] = None,
    mfu: Annotated[
        float, Query(gt=0, le=1, description="Share of the peak that is assumed where nothing was measured.")
    ] = MFU,
) -> Pace:
    """How fast training is taken to be."""
    return Pace(step_seconds=step_seconds, peak=None if peak_tflops is None else peak_tflops * 1e12, mfu=mfu)


@router.post(
    "/namespaces/{namespace}/plan",
    responses={
        **documented(HTTPStatus.BAD_REQUEST),
        200: {"content": {"application/json": {"example": examples.PLAN}}},
    },
)
async def plan_job(
    shared: Shared,
    namespace: Namespace,
    granted: Annotated[Granted, Depends(in_namespace("create"))],
    manifest: Annotated[Manifest, Body(openapi_examples={"job": {"value": examples.MANIFEST}})],
    pace: Annotated[Pace, Depends(paced)],
) -> Plan:
    """What a job would do and need, before anything is booked. Nothing is created.

    The cluster checks the job as if it were applied, in the caller's name; the pools are those that the caller may see.
    """
    metadata = {"name": manifest.metadata.get("name") or "plan", "namespace": namespace}
    body = {"apiVersion": API_VERSION, "kind": JOB_KIND, "metadata": metadata, "spec": manifest.spec}
    async with speaking(shared.kube, granted.caller) as kube:
        try:
            await kube.create(VIDEO_TRAINING_JOBS, body, dry_run=True)
        except AlreadyExistsError:
            return refused("AlreadyExists", f"there is a job {metadata['name']!r} already: choose another name")
        except (InvalidError, BadRequestError) as error:
            return refused("Invalid", error.message)
        pools = await kube.list(TRAINING_POOLS)
    return plan_of(manifest.spec, {pool["metadata"]["name"]: PoolSpec.stored(pool["spec"]) for pool in pools}, pace)


def plan_of(spec: Mapping[str, Any], pools: Mapping[str, PoolSpec], pace: Pace) -> Plan:
    """What a job would do and need: pure."""
    try:
        found = forecast(JobSpec.model_validate(spec), pools, pace)
    except ValidationError as error:
        faults = (f"spec.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:8])
        return refused("Invalid", "; ".join(faults))
    except PlanError as error:
        return refused(error.reason, str(error))
    stages = [_stage(stage) for stage in found.stages]
    return Plan(accepted=True, reason="", message="", stages=stages, training=_training(found))


def refused(reason: str, message: str) -> Plan:
    """The plan of a job that cannot be."""
    return Plan(accepted=False, reason=reason, message=message, stages=[], training=None)


def _stage(found: StagePlan) -> PlannedStage:
    return PlannedStage(stage=Stage(found.stage), pool=found.pool or None, pods=found.pods, devices=found.devices)


def _training(found: Forecast) -> Training:
    return Training(
        steps=found.steps,
        processes=found.devices,
        layout=dict(found.axes),
        memory={"total": found.memory_total, **found.memory},
        device_memory=found.device_memory,
        samples_per_step=found.samples_per_step,
        tflop_per_step=found.tflop_per_step,
        step_seconds=found.step_seconds,
        seconds=found.seconds,
        pace=found.pace,
        accelerator_hours=found.accelerator_hours,
        cost=found.cost,
        price_per_hour=found.price_per_hour,
        currency=found.currency or None,
        notes=list(found.notes),
    )
