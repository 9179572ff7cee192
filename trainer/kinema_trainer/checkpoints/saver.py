# SPDX-License-Identifier: Apache-2.0
"""Writes and reads the content of checkpoints, by torch's distributed checkpoint (DCP)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save

from kinema_api.exits import StageError
from kinema_stage.artifact import Manifest, publish, sizes
from kinema_stage.workspace import Workspace
from kinema_trainer.checkpoints import dcp
from kinema_trainer.checkpoints.folders import DIGESTS, Position, folder_of, recorded
from kinema_trainer.checkpoints.staging import HostCopy, Live, State

LOOK_SECONDS = 1.0
"""How often a process that waits for a checkpoint looks whether it grows."""


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
        load_tensors(dict(state), storage_reader=dcp.reader(workspace, folder), process_group=group)


class Saver:
    """Writes checkpoints in the background, one at a time; every process makes the same calls in the same order.

    The state is copied beside the loop, which calls `settle` before it changes what it trains. The leader publishes a
    checkpoint as soon as it is written, whatever the loop does then.

    Args:
        workspace: where to.
        root: the folder of the run's checkpoints.
        group: a gloo group that nothing else uses.
        leads: whether this process publishes and removes.
        keep: complete checkpoints that are kept.
        manifest: who writes; step, position and sizes are filled in.
        saved: the position that the run starts from, which needs no checkpoint.
        moved: called while the loop waits for a checkpoint that grows.
        before: called by the leader, in another thread, before a checkpoint is published.
        on_complete: called in the background once a checkpoint is complete.
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
        saved: Position,
        moved: Callable[[], None],
        before: Callable[[], None] | None = None,
        on_complete: Callable[[Position], None] = lambda position: None,
    ) -> None:
        self._workspace = workspace
        self._root = root
        self._group = group
        self._leads = leads
        self._keep = keep
        self._manifest = manifest
        self._saved = saved
        self._moved = moved
        self._before = before
        self._staged = 0
        self._on_complete = on_complete
        self._pending: tuple[Position, Future[None]] | None = None
        self._copied: Future[None] | None = None
        self._copier = HostCopy()
        self._finisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def save(self, state: State, position: Position, *, wait: bool) -> None:
        """Start to write `state` as it is now, unless this position is saved.

        Args:
            state: what to write; it may be read at once, and changed after `settle`.
            position: where the run stands.
            wait: return only when the checkpoint is complete, and copy nothing.
        """
        self.finish()
        if position == self._saved:
            return
        writer = dcp.writer(self._workspace, folder_of(self._root, position.step), moved=self._count)
        started = async_save(
            dict(state),
            storage_writer=writer,
            process_group=self._group,
            async_stager=Live() if wait else self._copier,
        )
        written = started
        if isinstance(started, AsyncSaveResponse):
            self._copied, written = started.staging_completion, started.upload_completion
        assert isinstance(written, Future)
        self._pending = (position, self._finisher.submit(self._complete, position, writer, written))
        self._saved = position
        if wait:
            self.finish()

    @property
    def copying(self) -> bool:
        """Whether what is trained may not be changed yet."""
        return self._copied is not None and not self._copied.done()

    def settle(self) -> None:
        """Wait until the state that is being saved may be changed."""
        if self._copied is not None:
            copied, self._copied = self._copied, None
            copied.result()

    def poll(self) -> None:
        """Raise what went wrong with the checkpoint that was being written, if it is done."""
        if self._pending is not None and self._pending[1].done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is published."""
        self.settle()
        if self._pending is None:
            return
        position, done = self._pending
        self._pending = None
        size = -1
        while not wait([done], timeout=LOOK_SECONDS).done:
            grown = self._size(position)
            if grown != size:
                size = grown
                self._moved()
        with plain_errors():
            done.result()

    def close(self) -> None:
        """Let go of the memory and the threads, once nothing is being written."""
        self._copier.close()
        self._finisher.shutdown(wait=True)

    def _complete(self, position: Position, writer: dcp.CheckpointWriter, written: Future[Any]) -> None:
        written.result()
        if self._leads:
            if self._before is not None:
                self._before()
            self._publish(position, digests=writer.digests)
            self._on_complete(position)
            self._retain()
        else:
            self._on_complete(position)

    def _count(self, more: int) -> None:
        self._staged += more

    def _size(self, position: Position) -> int:
        """Bytes of a checkpoint so far: in the workspace, by all processes; and on their way to it, by this one."""
        return self._staged + sum(sizes(self._workspace, folder_of(self._root, position.step)).values())

    def _publish(self, position: Position, *, digests: dict[str, str]) -> None:
        folder = folder_of(self._root, position.step)
        details = {
            **self._manifest.details,
            "step": position.step,
            "consumed": position.consumed,
            DIGESTS: dict(sorted(digests.items())),
        }
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
        for found in recorded(self._workspace, self._root)[: -self._keep]:
            self._workspace.delete(found.folder)
