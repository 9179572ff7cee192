# SPDX-License-Identifier: Apache-2.0
"""Opens the encoded clips of a run, in the order that the run began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinema_api.exits import Exit, StageError
from kinema_api.names import Stage, artifact_folder
from kinema_api.stage import TrainConfig
from kinema_stage.artifact import published
from kinema_stage.workspace import Workspace
from kinema_trainer import checkpoints
from kinema_trainer.costs import Table, predicted
from kinema_trainer.course import Course, batches_of, cost_of
from kinema_trainer.data import Loader, Split
from kinema_trainer.shards import ShardIndex, read_empty_text

COURSE = "course"
"""Name of the course in the details of a checkpoint's manifest."""


def make_loader(
    config: TrainConfig, *, workspace: Workspace, split: Split, found: checkpoints.Found | None = None
) -> Loader:
    """The encoded clips, in the order that the run began with.

    Raises:
        StageError: the features artifact is not complete, or not the one that the checkpoint was trained on.
    """
    name = artifact_folder(Stage.FEATURES, config.features_key)
    if published(workspace, name) is None:
        raise StageError(Exit.STORAGE, f"{workspace.uri(name)} is not complete: run the features stage first")
    folder = workspace.fetch(name)
    samples = ShardIndex.open(folder)
    return Loader(
        samples,
        course=course_of(config, samples, frozen=found.manifest.details.get(COURSE) if found is not None else None),
        empty_text=read_empty_text(folder),
        text_length=config.model.text_length,
        objective=config.settings.objective,
        seed=config.settings.seed,
        split=split,
        spatial=config.model.vae.spatial,
    )


def course_of(config: TrainConfig, samples: ShardIndex, *, frozen: Mapping[str, Any] | None) -> Course:
    """What is trained on when.

    Args:
        config: the run.
        samples: the encoded clips.
        frozen: the course of the checkpoint that the run goes on from.

    Raises:
        StageError: the checkpoint is of another course.
    """
    model, settings = config.model, config.settings
    cost = cost_of(frozen, packing=settings.packing, predicted=predicted(model))
    course = Course(
        Table.of(samples.keys, samples.shapes, patch=model.transformer.patch, cost=cost),
        seed=settings.seed,
        batch=settings.batch_per_device,
        packing=settings.packing,
        batches=batches_of(
            config.buckets, channels=model.vae.channels, temporal=model.vae.temporal, spatial=model.vae.spatial
        ),
    )
    if frozen is not None:
        course.check(frozen)
    return course
