# SPDX-License-Identifier: Apache-2.0
"""The stages of a job, and the settings of each: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinema_api import geometry
from kinema_api.catalogue import Entry
from kinema_api.job import JobSpec, Task
from kinema_api.names import Stage
from kinema_api.objective import Masks
from kinema_api.settings import PodTemplate, Stages, StageSettings

CPU_STAGES = frozenset({Stage.CHECK, Stage.PREPARE})
"""Stages that need neither an accelerator nor the family's image."""
DEVICE_STAGES = frozenset({Stage.FEATURES, Stage.TRAIN, Stage.SAMPLE})
"""Stages that compute on an accelerator; the others book none, even on a pool that has some."""
SHARED_STAGES = frozenset({Stage.PREPARE, Stage.FEATURES, Stage.CONVERT})
"""Stages whose artifact any job of the workspace may use."""
OPTIONAL_STAGES = frozenset({Stage.EXPORT, Stage.SAMPLE})
"""Stages that may be left out."""
_GRACE_SECONDS = {Stage.TRAIN: 300}
_DEFAULT_GRACE_SECONDS = 30


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


def grace_seconds(stage: Stage, template: PodTemplate) -> int:
    """Seconds between SIGTERM and SIGKILL: in them a training pod writes a checkpoint."""
    return template.termination_grace_period_seconds or _GRACE_SECONDS.get(stage, _DEFAULT_GRACE_SECONDS)


def pipeline(stages: Stages) -> tuple[Stage, ...]:
    """The stages that run, in order."""
    return tuple(stage for stage in Stage if stage_settings(stages, stage).enabled)
