# SPDX-License-Identifier: Apache-2.0
"""POST .../plan: what a job would do and need, before anything is booked. Nothing is created."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from pydantic import Field, ValidationError

from kinema_api import fit
from kinema_api.base import Model
from kinema_api.catalogue import Entry
from kinema_api.job import JobSpec
from kinema_api.layout import AXES
from kinema_api.names import API_VERSION, JOB_KIND, VERSION, Stage
from kinema_api.pipeline import DEVICE_STAGES, pipeline, pool_of
from kinema_api.plan import freeze
from kinema_api.pool import PoolSpec
from kinema_api.refusal import PlanError
from kinema_api.settings import Stages
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
    """How the training would be spread."""

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
    price_per_hour: float | None
    """Of all accelerators of the training; null where the pool names no price."""
    currency: str | None
    """ISO 4217 code of the price."""


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
    """How the training would be spread."""


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
    return plan_of(manifest.spec, {pool["metadata"]["name"]: PoolSpec.stored(pool["spec"]) for pool in pools})


def plan_of(spec: Mapping[str, Any], pools: Mapping[str, PoolSpec]) -> Plan:
    """What a job would do and need: pure."""
    try:
        job = JobSpec.model_validate(spec)
        resolved = freeze(spec=job, pools=pools, images=_AnyImage())
    except ValidationError as error:
        faults = (f"spec.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:8])
        return refused("Invalid", "; ".join(faults))
    except PlanError as error:
        return refused(error.reason, str(error))
    model, stages = Entry.stored(resolved.model), Stages.stored(resolved.stages)
    return Plan(
        accepted=True,
        reason="",
        message="",
        stages=[_stage(job, stages, stage) for stage in pipeline(stages)],
        training=_training(job, stages, model, pools),
    )


def refused(reason: str, message: str) -> Plan:
    """The plan of a job that cannot be."""
    return Plan(accepted=False, reason=reason, message=message, stages=[], training=None)


def _stage(job: JobSpec, stages: Stages, stage: Stage) -> PlannedStage:
    train, pods, devices = stages.train, 1, 1
    if stage is Stage.TRAIN:
        pods, devices = train.nodes or 1, train.devices_per_node or 1
    if stage is Stage.FEATURES:
        pods = stages.features.workers
    return PlannedStage(
        stage=stage,
        pool=pool_of(job, stages, stage),
        pods=pods,
        devices=devices if stage in DEVICE_STAGES else 0,
    )


def _training(job: JobSpec, stages: Stages, model: Entry, pools: Mapping[str, PoolSpec]) -> Training:
    train, name = stages.train, stages.train.pool or job.defaults.pool
    pool = pools[name]
    place = fit.place_of(train, pool, name=name)
    video = stages.prepare.video
    sizes = fit.check(model, train, video, place)
    need = fit.needed(model, train, sizes=sizes, passes=fit.works(model, train, video), place=place)
    return Training(
        steps=train.steps,
        processes=place.world,
        layout={axis: sizes.size(axis) for axis in AXES},
        memory={"total": need.total, **need.parts()},
        device_memory=place.memory,
        price_per_hour=None if pool.prices is None else pool.prices.device_hour * place.world,
        currency=None if pool.prices is None else pool.prices.currency,
    )


class _AnyImage(dict[str, str]):
    """Which images there are is the operator's business, and no part of a plan."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return key
