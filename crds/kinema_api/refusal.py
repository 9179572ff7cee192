# SPDX-License-Identifier: Apache-2.0
"""Why a job cannot run as it is written, as far as its spec and the model's dimensions tell: pure."""

from __future__ import annotations

from kinema_api import geometry
from kinema_api.buckets import Geometry
from kinema_api.catalogue import Entry, linears
from kinema_api.inputs import NOWHERE, DatasetFormat
from kinema_api.job import JobSpec, Task
from kinema_api.locations import check_address
from kinema_api.lora import ends_with
from kinema_api.names import Stage
from kinema_api.overrides import refusals
from kinema_api.pipeline import OPTIONAL_STAGES, stage_settings
from kinema_api.schedule import ScheduleKind
from kinema_api.settings import Stages

MASKED_TASKS = frozenset({Task.T2V, Task.V2V})
"""Tasks that may train on clips some of whose frames are clean."""


class PlanError(ValueError):
    """The job cannot run as it is written; the message is for its author."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check(spec: JobSpec, stages: Stages, model: Entry) -> None:
    """Look at everything that needs no pool.

    Args:
        spec: the job.
        stages: every setting, filled in.
        model: the catalogue entry.

    Raises:
        PlanError: with the reason and what to do.
    """
    _check_task(spec, model)
    _check_stages(stages)
    _check_masks(spec, model, stages)
    _check_sample(spec, model, stages)
    _check_lora(model, stages)
    _check_data(spec, stages, model)
    for field, location in (
        ("dataset", spec.dataset),
        ("model.weights", spec.model.weights),
        ("storage", spec.storage),
    ):
        _check_uri(field, location.uri)
    _check_templates(spec, stages)


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


def _check_lora(model: Entry, stages: Stages) -> None:
    lora = stages.train.lora
    names = [
        name.replace("*", str(block))
        for name in linears(model)
        for block in range(model.transformer.layers if "*" in name else 1)
    ]
    for end in lora.targets if lora.enabled and names else ():
        if not any(ends_with(name, end) for name in names):
            kinds = sorted({name.removeprefix("blocks.*.") for name in linears(model)})
            raise PlanError(
                "InvalidLora",
                f"spec.stages.train.lora.targets: no linear layer's name ends with {end}; there are {', '.join(kinds)}",
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
    if stages.train.packing is not None and stages.train.packing.cost is not None and stages.train.packing.measured:
        raise PlanError(
            "InvalidPacking", "spec.stages.train.packing.measured: cost is given; remove the one or the other"
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
