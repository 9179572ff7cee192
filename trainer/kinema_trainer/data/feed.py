# SPDX-License-Identifier: Apache-2.0
"""Opens the encoded clips of a run, in the order that the run began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kinema_api.exits import Exit, StageError
from kinema_api.names import Stage, artifact_folder
from kinema_api.packing import Cost
from kinema_api.stage import TrainConfig
from kinema_stage.artifact import published
from kinema_stage.workspace import Workspace
from kinema_trainer.checkpoints import folders
from kinema_trainer.data.costs import Table, predicted
from kinema_trainer.data.course import Course, batches_of, cost_of
from kinema_trainer.data.heldout import held_out
from kinema_trainer.data.reader import Loader, Split
from kinema_trainer.data.shards import ShardIndex, read_empty_text

COURSE = "course"
"""Name of the course in the details of a checkpoint's manifest."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The encoded clips of a run.

    Args of note:
        empty_text: embedding of the empty caption, [tokens, width].
        held: places of the clips that are held out for validation.
    """

    samples: ShardIndex
    empty_text: Tensor
    held: tuple[int, ...] = ()

    @classmethod
    def open(cls, config: TrainConfig, *, workspace: Workspace) -> Features:
        """The features artifact of a run.

        Raises:
            StageError: it is not complete, or validation leaves nothing of it to train on.
        """
        name = artifact_folder(Stage.FEATURES, config.features_key)
        if published(workspace, name) is None:
            raise StageError(Exit.STORAGE, f"{workspace.uri(name)} is not complete: run the features stage first")
        folder = workspace.fetch(name)
        samples = ShardIndex.open(folder)
        return cls(samples, read_empty_text(folder), held_out(samples.keys, config.settings.validation))


def make_loader(
    config: TrainConfig,
    *,
    features: Features,
    split: Split,
    found: folders.Found | None = None,
    measured: Cost | None = None,
) -> Loader:
    """The encoded clips, in the order that the run began with.

    Args:
        config: the run.
        features: the encoded clips.
        split: this process's part of them.
        found: the checkpoint that the run goes on from.
        measured: what a clip was measured to cost.

    Raises:
        StageError: they are not those that the checkpoint was trained on.
    """
    frozen = found.manifest.details.get(COURSE) if found is not None else None
    return Loader(
        features.samples,
        course=course_of(config, features.samples, held=features.held, frozen=frozen, measured=measured),
        empty_text=features.empty_text,
        text_length=config.model.text_length,
        objective=config.settings.objective,
        seed=config.settings.seed,
        split=split,
        spatial=config.model.vae.spatial,
        images=config.task.images,
        temporal=config.model.vae.temporal,
    )


def course_of(
    config: TrainConfig,
    samples: ShardIndex,
    *,
    held: tuple[int, ...] = (),
    frozen: Mapping[str, Any] | None,
    measured: Cost | None = None,
) -> Course:
    """What is trained on when.

    Args:
        config: the run.
        samples: the encoded clips.
        held: places of those that are never trained on.
        frozen: the course of the checkpoint that the run goes on from.
        measured: what a clip was measured to cost.

    Raises:
        StageError: the checkpoint is of another course.
    """
    model, settings = config.model, config.settings
    cost = cost_of(frozen, packing=settings.packing, predicted=measured or predicted(model))
    course = Course(
        Table.of(
            samples.keys,
            samples.shapes,
            patch=model.transformer.patch,
            cost=cost,
            selected=sorted(set(range(len(samples))) - set(held)),
        ),
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
