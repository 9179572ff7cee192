# SPDX-License-Identifier: Apache-2.0
"""Writes and reads the content of checkpoints, by torch's distributed checkpoint (DCP)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import async_save

from kinema_api.exits import StageError
from kinema_stage.artifact import Manifest, publish, sizes
from kinema_stage.workspace import Workspace
from kinema_trainer.checkpoints import Position, complete, folder_of

State = Mapping[str, Any]
"""Tensors that are saved and loaded in place, nested by part."""


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what went wrong in place of DCP's collection of it, which is no Exception and hides the cause."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        causes = [wrapped[0] for wrapped in error.failures.values()]
        known = [cause for cause in causes if isinstance(cause, StageError | OSError)]
        raise (known or causes)[0] from None


def load(workspace: Workspace, folder: str, state: State, *, group: dist.ProcessGroup | None = None) -> None:
    """Fill `state` from a checkpoint; the number of processes may differ from the one that wrote it."""
    with plain_errors():
        load_tensors(dict(state), checkpoint_id=workspace.local(folder), process_group=group)


class Saver:
    """Writes checkpoints in the background, one at a time; every process makes the same calls in the same order.

    Args:
        workspace: where to.
        root: the folder of the run's checkpoints.
        group: a gloo group that nothing else uses.
        leads: whether this process publishes and removes.
        keep: complete checkpoints that are kept.
        manifest: who writes; step, position and sizes are filled in.
    """

    def __init__(
        self,
        *,
        workspace: Workspace,
        root: str,
        group: dist.ProcessGroup,
        leads: bool,
        keep: int,
        manifest: Manifest,
    ) -> None:
        self._workspace = workspace
        self._root = root
        self._group = group
        self._leads = leads
        self._keep = keep
        self._manifest = manifest
        self._pending: tuple[Position, Future[Any]] | None = None

    def save(self, state: State, position: Position, *, wait: bool) -> None:
        """Start to write `state` as it is now; the caller may change it at once.

        Args:
            state: what to write.
            position: where the run stands.
            wait: return only when the checkpoint is complete.
        """
        self.finish()
        folder = self._workspace.local(folder_of(self._root, position.step))
        folder.mkdir(parents=True, exist_ok=True)
        future = async_save(dict(state), checkpoint_id=folder, process_group=self._group)
        assert isinstance(future, Future)
        self._pending = (position, future)
        if wait:
            self.finish()

    def poll(self) -> None:
        """Publish the checkpoint that was being written if it is done; raise what went wrong."""
        if self._pending is not None and self._pending[1].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written and publish it."""
        if self._pending is None:
            return
        position, future = self._pending
        self._pending = None
        with plain_errors():
            future.result()
        if self._leads:
            self._publish(position)
            self._retain()

    def _publish(self, position: Position) -> None:
        folder = folder_of(self._root, position.step)
        details = {**self._manifest.details, "step": position.step, "consumed": position.consumed}
        files = sizes(self._workspace, folder)
        manifest = self._manifest.model_copy(
            update={
                "details": details,
                "files": files,
                "counts": {"step": position.step, "bytes": sum(files.values())},
            }
        )
        publish(self._workspace, folder, manifest)

    def _retain(self) -> None:
        for found in complete(self._workspace, self._root)[: -self._keep]:
            self._workspace.delete(found.folder)
