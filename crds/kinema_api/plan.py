# SPDX-License-Identifier: Apache-2.0
"""From a job to all that it depends on: pure, and the same for the operator and a laptop."""

from __future__ import annotations

from collections.abc import Mapping

from kinema_api import attention, fit, refusal
from kinema_api.catalogue import Entry, entry
from kinema_api.job import JobSpec
from kinema_api.pipeline import CPU_STAGES, pipeline, pool_of, settings_of
from kinema_api.pool import PoolSpec
from kinema_api.refusal import PlanError
from kinema_api.settings import Precision, Stages
from kinema_api.status import Resolved

STAGE_IMAGE = "stage"
"""Key of the light image of `CPU_STAGES` in the operator's table of images."""


def freeze(*, spec: JobSpec, pools: Mapping[str, PoolSpec], images: Mapping[str, str]) -> Resolved:
    """All that a job depends on, checked as far as it can be without looking at its data.

    Args:
        spec: the job.
        pools: the spec of every pool of the cluster, by name.
        images: image references: `stage` for the light one, `<family>/<accelerator>` for the others.

    Raises:
        PlanError: with the reason and what to do.
    """
    try:
        model = entry(spec.model.name)
    except ValueError as error:
        raise PlanError("UnknownModel", f"spec.model.name: {error}") from None
    stages = settings_of(spec, model)
    refusal.check(spec, stages, model)
    used = _pools(spec, stages, pools)
    stages = _fill_layout(spec, _fill_devices(spec, stages, used), model, used)
    _check_training(spec, stages, model, used)
    return Resolved(
        model=model.wire(),
        pools={name: pool.wire() for name, pool in used.items()},
        images=_images(spec, stages, model, used, images),
        stages=stages.wire(),
    )


def _pools(spec: JobSpec, stages: Stages, pools: Mapping[str, PoolSpec]) -> dict[str, PoolSpec]:
    used: dict[str, PoolSpec] = {}
    for stage in pipeline(stages):
        name = pool_of(spec, stages, stage)
        if name is None:
            continue
        if name not in pools:
            have = f"{', '.join(sorted(pools))}: name one of them, or" if pools else "none:"
            raise PlanError(
                "UnknownPool",
                f"stage {stage}: there is no TrainingPool {name}; this cluster has {have} let the administrator create"
                " it",
            )
        used[name] = pools[name]
    return used


def _fill_devices(spec: JobSpec, stages: Stages, pools: Mapping[str, PoolSpec]) -> Stages:
    name = stages.train.pool or spec.defaults.pool
    pool = pools[name]
    devices = stages.train.devices_per_node or pool.devices_per_node
    nodes = stages.train.nodes
    assert nodes is not None
    if devices > pool.devices_per_node:
        raise PlanError(
            "NotEnoughDevices",
            f"spec.stages.train.devicesPerNode: {devices}, but a node of pool {name} has {pool.devices_per_node};"
            " ask for no more, spread the model over more nodes, or name a pool with larger nodes",
        )
    if nodes > pool.nodes:
        raise PlanError(
            "NotEnoughNodes",
            f"spec.stages.train.nodes: {nodes}, but pool {name} has {pool.nodes}; ask for no more, or let the"
            " administrator raise nodes of the TrainingPool",
        )
    train = stages.train.model_copy(update={"devices_per_node": devices})
    return stages.model_copy(update={"train": train})


def _fill_layout(spec: JobSpec, stages: Stages, model: Entry, pools: Mapping[str, PoolSpec]) -> Stages:
    name = stages.train.pool or spec.defaults.pool
    place = fit.place_of(stages.train, pools[name], name=name)
    chosen = fit.choose(model, stages.train, stages.prepare.video, place)
    return stages.model_copy(update={"train": chosen.train})


def _check_training(spec: JobSpec, stages: Stages, model: Entry, pools: Mapping[str, PoolSpec]) -> None:
    name = stages.train.pool or spec.defaults.pool
    half = stages.train.precision is Precision.BF16
    found = attention.refusal(stages.train.attention, accelerator=pools[name].accelerator, half=half)
    if found is not None:
        raise PlanError("InvalidAttention", f"spec.stages.train.attention: {found}")
    try:
        fit.check(model, stages.train, stages.prepare.video, fit.place_of(stages.train, pools[name], name=name))
    except fit.FitError as error:
        raise PlanError(error.reason, f"spec.{error}") from None


def _images(
    spec: JobSpec, stages: Stages, model: Entry, pools: Mapping[str, PoolSpec], images: Mapping[str, str]
) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for stage in pipeline(stages):
        key = STAGE_IMAGE
        if stage not in CPU_STAGES:
            name = pool_of(spec, stages, stage)
            assert name is not None
            key = f"{model.family}/{pools[name].accelerator.value}"
        if key not in images:
            raise PlanError(
                "NoImage", f"stage {stage}: the operator was given no image for {key}; set images in the chart's values"
            )
        chosen[stage.value] = images[key]
    return chosen
