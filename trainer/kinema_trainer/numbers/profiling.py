# SPDX-License-Identifier: Apache-2.0
"""Profiles steps of a running training: torch's trace, a table of operations, and a snapshot of the device's memory."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from kinema_stage import scratch
from kinema_stage.workspace import Workspace
from kinema_trainer.numbers.wish import FILE, Wish, laid

logger = logging.getLogger(__name__)

ROWS = 40
"""Operations in the table."""
_ALLOCATIONS = 200_000
"""Entries of the memory's history that are kept."""
_ACTIVITIES = {"cuda": ProfilerActivity.CUDA, "npu": ProfilerActivity.PrivateUse1, "xpu": ProfilerActivity.XPU}


@dataclass(slots=True)
class Profiler:
    """One process's side; call `step` after every step.

    Args of note:
        shared: the folder in which the stage lays wishes.
        run: the run's folder in the workspace.
        moved: called while a result is written.
    """

    shared: Path
    workspace: Workspace
    run: str
    rank: int
    device: torch.device
    moved: Callable[[], None]
    _seen: int = field(default=0, init=False)
    _session: _Session | None = field(default=None, init=False)

    def step(self, step: int) -> None:
        """A step is over."""
        if self._session is not None:
            if step >= self._session.last:
                session, self._session = self._session, None
                self._keep(session)
            return
        wish = self._wish()
        if wish is not None and self.rank in wish.ranks:
            logger.info("profiling steps %d to %d", step + 1, step + wish.steps)
            self._session = _Session(wish, first=step + 1, device=self.device)

    def close(self) -> None:
        """Give up what is not finished."""
        if self._session is not None:
            self._session.stop()
            self._session = None

    def _wish(self) -> Wish | None:
        """The wish that was laid since the last look: a single look at a file of this machine."""
        path = self.shared / FILE
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if changed == self._seen:
            return None
        self._seen = changed
        return laid(path)

    def _keep(self, session: _Session) -> None:
        target = f"{self.run}/{session.wish.folder(session.first)}"
        self.moved()
        with tempfile.TemporaryDirectory(prefix="kinema-profile-", dir=scratch.root()) as name:
            try:
                session.write(Path(name), rank=self.rank)
                for file in sorted(Path(name).iterdir()):
                    self.moved()
                    self.workspace.upload(file, f"{target}/{file.name}")
            except OSError as error:
                # Nobody's training ends for the sake of a profile.
                logger.warning("the profile of steps %d to %d is lost: %s", session.first, session.last, error)
            else:
                where = self.workspace.uri(target)
                logger.info("the profile of steps %d to %d is in %s", session.first, session.last, where)
        self.moved()


class _Session:
    """The steps that are being profiled."""

    def __init__(self, wish: Wish, *, first: int, device: torch.device) -> None:
        self.wish = wish
        self.first = first
        self.last = first + wish.steps - 1
        self._device = device
        self._memory = _memory_of(device) if wish.memory else None
        activities = [ProfilerActivity.CPU]
        if device.type in _ACTIVITIES:
            activities.append(_ACTIVITIES[device.type])
        self._profile = profile(activities=activities, profile_memory=wish.memory, with_stack=wish.stacks)
        if self._memory is not None:
            self._memory._record_memory_history(max_entries=_ALLOCATIONS)
        self._profile.start()

    def stop(self) -> None:
        """Record no more."""
        self._profile.stop()
        if self._memory is not None:
            self._memory._record_memory_history(enabled=None)

    def write(self, folder: Path, *, rank: int) -> None:
        """Record no more, and leave what was recorded in a folder."""
        if self._memory is not None:
            self._memory._dump_snapshot(str(folder / f"rank-{rank}.memory.pickle"))
        self.stop()
        self._profile.export_chrome_trace(str(folder / f"rank-{rank}.trace.json.gz"))
        order = "self_cpu_time_total" if self._device.type == "cpu" else "self_device_time_total"
        table = self._profile.key_averages().table(sort_by=order, row_limit=ROWS)
        (folder / f"rank-{rank}.operations.txt").write_text(table, encoding="utf-8")
        told = {**asdict(self.wish), "first": self.first, "last": self.last}
        (folder / f"rank-{rank}.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def _memory_of(device: torch.device) -> Any:
    """What can record the allocations of a device; None where nothing can."""
    if device.type == "cpu":
        return None
    memory = getattr(torch.get_device_module(device), "memory", None)
    return memory if hasattr(memory, "_record_memory_history") else None
