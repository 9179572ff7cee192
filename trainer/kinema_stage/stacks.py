# SPDX-License-Identifier: Apache-2.0
"""What the threads of a process that hangs are at, kept in the job's folder."""

from __future__ import annotations

import faulthandler
import logging
import sys
import tempfile
import threading
from pathlib import Path

from kinema_api.stage import AnyStageConfig
from kinema_stage.workspace import Workspace

logger = logging.getLogger(__name__)

STORE_SECONDS = 10.0
"""A workspace that hangs may be the cause: nobody waits longer for it."""
STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "in the kernel", "Z": "dead"}


def path_of(config: AnyStageConfig, *, rank: int) -> str:
    """Where they lie, relative to the workspace."""
    return f"{config.run}/stacks/{config.stage}/attempt-{config.attempt}-rank-{rank}.txt"


def own() -> str:
    """The stack of every thread of this process."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def state(pid: int, *, proc: Path = Path("/proc")) -> str:
    """The kernel's word for what a process is at; empty when it is gone."""
    try:
        lines = (proc / str(pid) / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split()[1] for line in lines if line.startswith("State:")), "")


def foreign(pid: int, *, proc: Path = Path("/proc")) -> str:
    """What the kernel tells of another process's threads; Python's stacks cannot be had of one that is frozen."""
    lines = [f"process {pid}: no stacks of Python, since it does not answer; its threads by the kernel:"]
    for task in sorted((proc / str(pid) / "task").glob("*"), key=lambda path: int(path.name)):
        facts = [f"thread {task.name}"]
        for name in ("comm", "wchan"):
            try:
                facts.append(f"{name} {(task / name).read_text(encoding='utf-8', errors='replace').strip() or '-'}")
            except OSError:
                continue
        found = state(int(task.name), proc=task.parent)
        lines.append("  ".join([*facts, f"state {found} ({STATES.get(found, 'running or asleep')})"]))
    return "\n".join(lines) + "\n"


def store(workspace: Workspace, path: str, text: str, *, timeout: float = STORE_SECONDS) -> str | None:
    """Keep the stacks, and show them on stderr; their address, or None when the workspace did not take them."""
    print(text, file=sys.stderr, flush=True)
    kept: list[str] = []

    def write() -> None:
        try:
            workspace.write(path, text.encode())
        except Exception as error:  # the process is about to end, for a better reason
            logger.warning("the stacks are in this log alone: %s: %s", workspace.uri(path), error)
        else:
            kept.append(workspace.uri(path))

    thread = threading.Thread(target=write, name="stacks", daemon=True)
    thread.start()
    thread.join(timeout)
    return kept[0] if kept else None
