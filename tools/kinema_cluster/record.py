# SPDX-License-Identifier: Apache-2.0
"""What a cluster writes down about itself, to be found again by the next command."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinema_cluster.errors import ClusterError
from kinema_cluster.paths import cache
from kinema_cluster.processes import Process, alive


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(slots=True)
class Record:
    """The state file of one cluster."""

    path: Path
    kind: str
    boot: str
    details: dict[str, Any] = field(default_factory=dict)
    """Ports, and what the machine looked like before the cluster changed it."""
    processes: dict[str, Process] = field(default_factory=dict)
    ready: bool = False

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "kind": self.kind,
            "boot": self.boot,
            "details": self.details,
            "ready": self.ready,
            "processes": [asdict(process) for process in self.processes.values()],
        }
        write_atomically(self.path, json.dumps(data, indent=1))

    def living(self) -> dict[str, Process]:
        """The components that run; after a reboot none does, whatever the pids say."""
        if self.boot != boot_id():
            return {}
        return {name: process for name, process in self.processes.items() if alive(process)}


def load(path: Path) -> Record | None:
    """The record at `path`; None if there is none."""
    try:
        data: Mapping[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ClusterError(f"{path} is damaged ({error}): run `tools/cluster down` with its --state-dir") from error
    return Record(
        path=path,
        kind=data["kind"],
        boot=data["boot"],
        details=dict(data["details"]),
        ready=bool(data["ready"]),
        processes={entry["name"]: Process(**(entry | {"argv": tuple(entry["argv"])})) for entry in data["processes"]},
    )


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    unfinished.chmod(mode)
    unfinished.replace(path)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One command at a time on the cluster under `root`. The lock file is in the cache, for `down` removes the root."""
    folder = cache() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
