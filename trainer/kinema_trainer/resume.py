# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run goes on from, and what a checkpoint says of its run to make that decidable."""

from __future__ import annotations

from typing import Any

from kinema_api.exits import Exit, StageError
from kinema_api.keys import digest
from kinema_api.names import Stage
from kinema_api.stage import TrainConfig, artifact_of
from kinema_stage.artifact import Manifest
from kinema_stage.workspace import Workspace
from kinema_trainer.checkpoints import folders
from kinema_trainer.data.feed import COURSE
from kinema_trainer.spread import Team


def manifest(config: TrainConfig, *, course: dict[str, Any]) -> Manifest:
    """What every checkpoint of the run says of itself.

    Args:
        config: of the train stage.
        course: the frozen course of clips, which whoever goes on must have too.
    """
    return Manifest(
        stage=Stage.TRAIN,
        key=config.job.uid,
        job=f"{config.job.namespace}/{config.job.name}",
        details={
            "config": config_digest(config),
            "ema": config.settings.ema.enabled,
            "lora": lora_of(config),
            COURSE: course,
        },
    )


def config_digest(config: TrainConfig) -> str:
    """A key of what a checkpoint depends on: going on under another one would mix two runs."""
    settings = config.settings
    return digest(
        {
            "model": config.model.transformer.wire(),
            "weights": config.convert_key,
            "features": config.features_key,
            "seed": settings.seed,
            "objective": settings.objective.wire(),
            "ema": settings.ema.enabled,
            "lora": lora_of(config),
        }
    )


def lora_of(config: TrainConfig) -> dict[str, Any] | None:
    """The additions that a run trains; None where it trains the weights."""
    return config.settings.lora.wire() if config.settings.lora.enabled else None


def point(config: TrainConfig, *, workspace: Workspace, team: Team) -> folders.Found | None:
    """The checkpoint to go on from, the same in every process; the leader clears away what cannot be used.

    Returns:
        None where the run has no checkpoint yet.

    Raises:
        StageError: the last one is of another run's settings, or none of them can be read whole.
    """
    root = artifact_of(config)
    complete: list[folders.Found] = team.tell(folders.complete(workspace, root) if team.leads else None)
    for last in reversed(complete):
        if last.manifest.details["config"] != config_digest(config):
            raise StageError(
                Exit.USER,
                f"{workspace.uri(last.folder)} was written with another model, dataset, seed or objective: give the run"
                " another name, or delete the checkpoints",
            )
        damaged = folders.damaged(workspace, last, rank=team.rank, world=team.world)
        if damaged:
            folders.tell_damage(last, damaged)
        if team.total([float(len(damaged))]) == [0.0]:
            if team.leads:
                folders.remove_rest(workspace, root, last)
            return last
    lost = team.tell(len(folders.recorded(workspace, root)) if team.leads else None)
    if lost:
        # Whoever trained for weeks would rather mend a volume than find the run at its first step again.
        raise StageError(
            Exit.STORAGE,
            f"{workspace.uri(root)}: none of the {lost} checkpoints has the content that was written; mend the volume,"
            " or delete them to train from the beginning",
        )
    if team.leads:
        folders.remove_rest(workspace, root, None)
    return None
