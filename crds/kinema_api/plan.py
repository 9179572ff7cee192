# SPDX-License-Identifier: Apache-2.0
"""From a job to its pipeline: pure, and the same for the operator and a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from kinema_api import attention, fit, geometry
from kinema_api.buckets import Geometry
from kinema_api.catalogue import Entry, entry
from kinema_api.inputs import NOWHERE, DatasetFormat, Location
from kinema_api.job import JobSpec, Task
from kinema_api.keys import Keys
from kinema_api.locations import check_address, claim_of, in_container
from kinema_api.names import Stage
from kinema_api.objective import Masks
from kinema_api.overrides import refusals
from kinema_api.pool import PoolSpec
from kinema_api.schedule import ScheduleKind
from kinema_api.settings import Precision, Stages, StageSettings
from kinema_api.stage import (
    AnyStageConfig,
    CheckConfig,
    ConvertConfig,
    ExportConfig,
    FeaturesConfig,
    JobRef,
    PrepareConfig,
    SampleConfig,
    TrainConfig,
    TrainingPlace,
)
from kinema_api.status import Resolved

AnyLocation = TypeVar("AnyLocation", bound=Location)

CPU_STAGES = frozenset({Stage.CHECK, Stage.PREPARE})
"""Stages that need neither an accelerator nor the family's image."""
SHARED_STAGES = frozenset({Stage.PREPARE, Stage.FEATURES, Stage.CONVERT})
"""Stages whose artifact any job of the workspace may use."""
OPTIONAL_STAGES = frozenset({Stage.EXPORT, Stage.SAMPLE})
"""Stages that may be left out."""
MASKED_TASKS = frozenset({Task.T2V, Task.V2V})
"""Tasks that may train on clips some of whose frames are clean."""
STAGE_IMAGE = "stage"
"""Key of the light image of `CPU_STAGES` in the operator's table of images."""


class PlanError(ValueError):
    """The job cannot run as it is written; the message is for its author."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; anything but a mapping is replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def settings_of(spec: JobSpec, model: Entry) -> Stages:
    """Every stage's settings: what the user wrote, over the family's defaults, over the built-in ones."""
    written = spec.stages.model_dump(by_alias=True, exclude_unset=True)
    stages = Stages.model_validate(merge(model.defaults, written))
    schedule = stages.train.schedule
    if "warmup_steps" not in spec.stages.train.schedule.model_fields_set:
        short = min(schedule.warmup_steps, stages.train.steps // 10)
        schedule = schedule.model_copy(update={"warmup_steps": short})
    task = spec.model.task or model.tasks[0]
    objective = stages.train.objective.filled
    if task is Task.V2V and not objective.masks.shares:
        objective = objective.model_copy(update={"masks": Masks(quarter_head=1)})
    train = stages.train.model_copy(
        update={
            "objective": objective,
            "schedule": schedule,
            "nodes": stages.train.nodes or spec.defaults.nodes,
            "devices_per_node": stages.train.devices_per_node or spec.defaults.devices_per_node,
        }
    )
    sample = stages.sample.model_copy(
        update={"video": stages.sample.video or geometry.largest(stages.prepare.video, model)}
    )
    if task is Task.V2V and "enabled" not in spec.stages.sample.model_fields_set:
        sample = sample.model_copy(update={"enabled": False})
    return stages.model_copy(update={"train": train, "sample": sample})


def stage_settings(stages: Stages, stage: Stage) -> StageSettings:
    """The settings of one stage."""
    settings = getattr(stages, stage.value)
    assert isinstance(settings, StageSettings)
    return settings


def pool_of(spec: JobSpec, stages: Stages, stage: Stage) -> str | None:
    """The pool a stage runs on; None for a stage that needs no accelerator and names no pool."""
    named = stage_settings(stages, stage).pool
    if named is not None or stage in CPU_STAGES:
        return named
    return spec.defaults.pool


def pipeline(stages: Stages) -> tuple[Stage, ...]:
    """The stages that run, in order."""
    return tuple(stage for stage in Stage if stage_settings(stages, stage).enabled)


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
    _check_task(spec, model)
    stages = settings_of(spec, model)
    _check_stages(stages)
    _check_masks(spec, model, stages)
    _check_sample(spec, model, stages)
    _check_data(spec, stages, model)
    for field, location in (
        ("dataset", spec.dataset),
        ("model.weights", spec.model.weights),
        ("storage", spec.storage),
    ):
        _check_uri(field, location.uri)
    _check_templates(spec, stages)
    used = _pools(spec, stages, pools)
    stages = _fill_devices(spec, stages, used)
    _check_training(spec, stages, model, used)
    return Resolved(
        model=model.wire(),
        pools={name: pool.wire() for name, pool in used.items()},
        images=_images(spec, stages, model, used, images),
        stages=stages.wire(),
    )


def _check_task(spec: JobSpec, model: Entry) -> None:
    task = spec.model.task or model.tasks[0]
    if task not in model.tasks:
        can = " or ".join(task.value for task in model.tasks)
        raise PlanError(
            "TaskNotSupported",
            f"spec.model.task: {model.name} cannot do {task.value}; write {can}, or name a model that can do"
            f" {task.value}",
        )
    if task.images and model.image is None:
        raise PlanError("TaskNotSupported", f"spec.model.task: {model.name} has no image encoder, which {task} needs")


def _check_sample(spec: JobSpec, model: Entry, stages: Stages) -> None:
    if stages.sample.enabled and (spec.model.task or model.tasks[0]) is Task.V2V:
        raise PlanError(
            "SampleNotSupported",
            f"spec.stages.sample.enabled: {model.pipeline} cannot be given the leading frames of v2v; remove the line,"
            " and let training generate videos with stages.train.validation.samples.everySteps",
        )


def _check_masks(spec: JobSpec, model: Entry, stages: Stages) -> None:
    shares = stages.train.objective.masks.shares
    where = "spec.stages.train.objective.masks"
    task = spec.model.task or model.tasks[0]
    if shares and task not in MASKED_TASKS:
        raise PlanError(
            "InvalidMasks",
            f"{where}: a model that does {task} is given frames beside the noise, not clean ones within it;"
            " remove masks",
        )
    if sum(shares.values()) > 1 + 1e-9:
        raise PlanError(
            "InvalidMasks",
            f"{where}: the shares {', '.join(f'{name} {share:g}' for name, share in shares.items())} add up to"
            f" {sum(shares.values()):g}; together they are at most 1",
        )


def _check_stages(stages: Stages) -> None:
    for stage in Stage:
        if stage not in OPTIONAL_STAGES and not stage_settings(stages, stage).enabled:
            raise PlanError("StageRequired", f"spec.stages.{stage}.enabled: later stages need {stage}; remove the line")
    if stages.sample.enabled and not stages.export.enabled:
        raise PlanError("StageRequired", "spec.stages.sample needs export: enable export, or disable sample too")
    warmup, steps = stages.train.schedule.warmup_steps, stages.train.steps
    if warmup >= steps:
        raise PlanError(
            "InvalidSchedule",
            f"spec.stages.train.schedule.warmupSteps: {warmup} steps of warm-up do not fit into {steps} steps;"
            f" set it to {steps // 10} or so",
        )
    decay = stages.train.schedule.decay_steps
    if stages.train.schedule.kind is ScheduleKind.WSD and decay is not None and warmup + decay > steps:
        raise PlanError(
            "InvalidSchedule",
            f"spec.stages.train.schedule.decaySteps: {warmup} steps of warm-up and {decay} of decay do not fit into"
            f" {steps} steps; set it to at most {steps - warmup}",
        )


def _check_data(spec: JobSpec, stages: Stages, model: Entry) -> None:
    single = sorted(spec.stages.prepare.video.model_fields_set & set(Geometry._fields))
    if stages.prepare.video.buckets and single:
        raise PlanError(
            "InvalidVideo",
            f"spec.stages.prepare.video: buckets take the place of {' and '.join(single)}; remove the one or the other",
        )
    task = spec.model.task or model.tasks[0]
    for message in (*geometry.problems(stages, model), *geometry.given_away(stages, images=task.images)):
        raise PlanError("InvalidVideo", message)
    if stages.train.packing is not None and "batch_per_device" in spec.stages.train.model_fields_set:
        raise PlanError(
            "InvalidPacking", "spec.stages.train.batchPerDevice: packing fills a forward pass by tokens; remove it"
        )
    unpacked = geometry.unpacked(stages, model)
    if unpacked is not None:
        raise PlanError("InvalidPacking", unpacked)
    if (spec.dataset.format is DatasetFormat.MOCK) != (spec.dataset.uri == NOWHERE):
        wanted = "a mock lies nowhere; remove it" if spec.dataset.uri != NOWHERE else "say where the videos lie"
        raise PlanError("InvalidAddress", f"spec.dataset.uri: {wanted}, or write another dataset.format")


def _check_uri(field: str, uri: str) -> None:
    try:
        check_address(uri)
    except ValueError as error:
        raise PlanError("InvalidAddress", f"spec.{field}.uri: {error}") from None


def _check_templates(spec: JobSpec, stages: Stages) -> None:
    found = refusals(spec.defaults.pod_template, "spec.defaults.podTemplate")
    for stage in Stage:
        found += refusals(stage_settings(stages, stage).pod_template, f"spec.stages.{stage}.podTemplate")
    if found:
        raise PlanError("InvalidPodTemplate", found[0])


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


def stage_config(
    *, stage: Stage, spec: JobSpec, resolved: Resolved, job: JobRef, attempt: int, keys: Keys | None
) -> AnyStageConfig:
    """The config of one attempt.

    Args:
        stage: which stage.
        spec: the job.
        resolved: what `freeze` returned.
        job: whom the stage works for.
        attempt: counts from 1.
        keys: what `check` resolved; None only for `check` itself.
    """
    model = Entry.stored(resolved.model)
    stages = Stages.stored(resolved.stages)
    common: dict[str, Any] = {
        "job": job,
        "attempt": attempt,
        "workspace": _mounted(spec.storage),
        "model": model,
        "task": spec.model.task or model.tasks[0],
    }
    weights, dataset = _mounted(spec.model.weights), _mounted(spec.dataset)
    if "weights" in resolved.pins:
        weights = weights.model_copy(update={"revision": resolved.pins["weights"]})
    if stage is Stage.CHECK:
        name = stages.train.pool or spec.defaults.pool
        place = fit.place_of(stages.train, PoolSpec.stored(resolved.pools[name]), name=name)
        return CheckConfig(
            **common,
            dataset=dataset,
            weights=weights,
            prepare=stages.prepare,
            features=stages.features,
            train=stages.train,
            place=TrainingPlace(**asdict(place)),
        )
    if keys is None:
        raise ValueError(f"stage {stage} needs the keys that check resolves")
    match stage:
        case Stage.PREPARE:
            return PrepareConfig(**common, key=keys.prepare, dataset=dataset, settings=stages.prepare)
        case Stage.FEATURES:
            return FeaturesConfig(
                **common,
                key=keys.features,
                dataset=dataset,
                prepare_key=keys.prepare,
                encoder_key=keys.encoder,
                weights=weights,
                settings=stages.features,
            )
        case Stage.CONVERT:
            return ConvertConfig(**common, key=keys.convert, weights=weights, settings=stages.convert)
        case Stage.TRAIN:
            return TrainConfig(
                **common,
                features_key=keys.features,
                convert_key=keys.convert,
                nodes=stages.train.nodes or 1,
                devices_per_node=stages.train.devices_per_node or 1,
                weights=weights if stages.train.validation.samples.every_steps else None,
                buckets=stages.prepare.video.buckets,
                settings=stages.train,
                video=stages.prepare.video,
            )
        case Stage.EXPORT:
            return ExportConfig(**common, weights=weights, ema=stages.train.ema.enabled, settings=stages.export)
        case _:
            given = dataset if common["task"].images else None
            return SampleConfig(**common, prepare_key=keys.prepare, dataset=given, settings=stages.sample)


def _mounted(location: AnyLocation) -> AnyLocation:
    """The location as a stage's container sees it."""
    return location.model_copy(update={"uri": in_container(location.uri)})


def locations(spec: JobSpec) -> tuple[Location, ...]:
    """Everything outside the cluster's API that a job reads or writes."""
    data = () if spec.dataset.format is DatasetFormat.MOCK else (spec.dataset,)
    return (*data, spec.model.weights, spec.storage)


def claims(spec: JobSpec) -> tuple[str, ...]:
    """The claims that the job's pods mount, sorted."""
    found = (claim_of(location.uri) for location in locations(spec))
    return tuple(sorted({claim.name for claim in found if claim is not None}))


def secrets(spec: JobSpec) -> tuple[str, ...]:
    """The Secrets that the job's pods mount, sorted."""
    return tuple(sorted({location.secret_ref.name for location in locations(spec) if location.secret_ref is not None}))


def staged(spec: JobSpec) -> bool:
    """Whether pods need local space for what does not lie on a volume."""
    return any(claim_of(location.uri) is None for location in locations(spec))
