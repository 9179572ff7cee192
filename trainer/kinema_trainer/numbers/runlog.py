# SPDX-License-Identifier: Apache-2.0
"""What a run leaves for people: metrics.jsonl with every step once, events.jsonl, and TensorBoard files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from kinema_stage.artifact import timestamp
from kinema_stage.workspace import FolderWorkspace, Workspace
from kinema_trainer.numbers.mirror import Mirror

METRICS, EVENTS, TENSORBOARD = "metrics.jsonl", "events.jsonl", "tensorboard"


class RunLog:
    """The leader's log of a run.

    Opening it cuts away the steps behind `step`, which a broken attempt made and this one makes again, and records how
    many they were.

    Args:
        workspace: where to.
        folder: the job's folder.
        step: the step from which this attempt goes on.
        attempt: its number.
    """

    def __init__(self, workspace: Workspace, folder: str, *, step: int, attempt: int) -> None:
        lost = _cut(workspace, f"{folder}/{METRICS}", step=step)
        self._mirror: Mirror | None = None
        if isinstance(workspace, FolderWorkspace):
            place = workspace.local(folder)
            place.mkdir(parents=True, exist_ok=True)
        else:
            self._mirror = Mirror(workspace, folder, kept=(METRICS, EVENTS))
            place = self._mirror.local
        self._metrics = (place / METRICS).open("a", encoding="utf-8")
        self._events = (place / EVENTS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(place / TENSORBOARD), purge_step=step + 1)
        self.event("started" if step == 0 else "resumed", attempt=attempt, step=step, repeats=lost)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step."""
        line = {"step": step, "time": round(time.time(), 3), **metrics}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def event(self, name: str, **fields: Any) -> None:
        """Record something that is not a step."""
        self._events.write(json.dumps({"event": name, "time": timestamp(), **fields}) + "\n")
        self._events.flush()

    def upload(self) -> None:
        """Bring all that was recorded so far into the workspace, where it is a bucket."""
        if self._mirror is not None:
            self._board.flush()
            self._mirror.upload()

    def close(self) -> None:
        """Write what is left."""
        self._board.close()
        self._metrics.close()
        self._events.close()
        if self._mirror is not None:
            self._mirror.close()


def _cut(workspace: Workspace, path: str, *, step: int) -> int:
    """Drop the lines behind a step, and a last line that a kill cut short; return how many whole ones it were."""
    if not workspace.exists(path):
        return 0
    whole = [line for line in workspace.read(path).splitlines(keepends=True) if line.endswith(b"\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    workspace.write(path, b"".join(kept))
    return len(whole) - len(kept)
