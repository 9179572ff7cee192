# SPDX-License-Identifier: Apache-2.0
"""What each attempt of a stage is told: pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from kinema_api import fit
from kinema_api.catalogue import Entry
from kinema_api.inputs import Location
from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.locations import in_container
from kinema_api.names import Stage
from kinema_api.pool import PoolSpec
from kinema_api.settings import Stages
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
