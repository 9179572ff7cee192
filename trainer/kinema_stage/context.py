# SPDX-License-Identifier: Apache-2.0
"""What every implementation of a stage is given."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from kinema_api.exits import Exit, StageError
from kinema_api.stage import AnyStageConfig, artifact_of
from kinema_stage.progress import Progress
from kinema_stage.workspace import Workspace, open_workspace

ENV_WORKER = "JOB_COMPLETION_INDEX"
"""Index of the pod in an Indexed Job."""


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of a running stage."""

    config: AnyStageConfig
    workspace: Workspace
    progress: Progress
    interrupted: threading.Event
    worker: int = 0

    @property
    def holder(self) -> str:
        """Who this process is to the claims of other processes; a restarted pod is the same holder."""
        return f"{self.config.job.uid}/{self.config.stage}/{self.worker}"

    @property
    def folder(self) -> str:
        """Where the stage's result lies, relative to the workspace."""
        return artifact_of(self.config)

    @property
    def claim(self) -> str:
        """Where workers of this artifact meet, relative to the workspace."""
        return f"claims/{self.folder}"

    def check_interrupted(self) -> None:
        """Leave if SIGTERM came.

        Raises:
            StageError: it did.
        """
        if self.interrupted.is_set():
            raise StageError(
                Exit.INTERRUPTED, f"{self.config.stage} was told to stop; it goes on from here when run again"
            )


def make_context(
    config: AnyStageConfig, *, interrupted: threading.Event, environment: Mapping[str, str] = os.environ
) -> Context:
    """The context of this process. Only worker 0 of an Indexed Job speaks to the server.

    Raises:
        StageError: the workspace's address is not one, or its credentials are not there.
    """
    worker = int(environment.get(ENV_WORKER) or 0)
    try:
        workspace = open_workspace(config.workspace)
    except ValueError as error:
        raise StageError(Exit.USER, f"storage.uri: {error}") from None
    return Context(
        config=config,
        workspace=workspace,
        progress=Progress(config.stage, primary=worker == 0, environment=environment),
        interrupted=interrupted,
        worker=worker,
    )
