# SPDX-License-Identifier: Apache-2.0
"""The local cluster's node from below: its containers are processes of this machine, its volumes are folders."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kinema_demo.kubectl import Object
from kinema_demo.target import Target

from kinema_cluster import images
from kinema_cluster.full import FullCluster

from tests.waiting import until

WORKER, LAUNCHER = "kinema_trainer.worker", "torch.distributed.run"


def local(cluster: Target) -> FullCluster:
    """The local cluster; skips the test on a cluster of the user's."""
    if cluster.cluster is None:
        pytest.skip("nothing of another machine can be broken from here")
    return cluster.cluster


def process_of(cluster: Target, pod: Object) -> int:
    """The first process of a pod's only container, by its pid on this machine."""
    state = pod["status"]["containerStatuses"][0]
    container = state["containerID"].removeprefix("containerd://")
    tasks = images.ctr(local(cluster).layout.containerd_socket, "tasks", "list")
    return next(int(line.split()[1]) for line in tasks.splitlines() if line.startswith(container))


def kill(cluster: Target, *pods: Object) -> None:
    """Kill -9 of the pods' containers at once; comes back when the processes are gone."""
    pids = [process_of(cluster, pod) for pod in pods]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(f"pids {pids} are gone", lambda: not any(_alive(pid) for pid in pids), seconds=20)


def training_processes(cluster: Target, pod: Object) -> list[int]:
    """The processes of a pod that train, by their pids on this machine."""
    return [
        pid
        for pid in _descendants(process_of(cluster, pod))
        if WORKER in (command := _command(pid)) and LAUNCHER not in command
    ]


def training_process(cluster: Target, pod: Object) -> int:
    """The only process of a pod that trains, by its pid on this machine."""
    found = training_processes(cluster, pod)
    assert len(found) == 1, f"{pod['metadata']['name']}: training processes {found}"
    return found[0]


@contextlib.contextmanager
def small_volume(cluster: Target, claim: str, *, namespace: str, mebibytes: int) -> Iterator[Path]:
    """A claim on a disk of that size; its folder on this machine."""
    folder = local(cluster).layout.root / "volumes" / namespace / claim
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0777", "tmpfs", str(folder)], check=True)
    try:
        assert local(cluster).add_volume(claim, namespace=namespace) == folder
        yield folder
    finally:
        # Lazily: pods that still end hold it.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of a disk; the file that takes them all."""
    taken = folder / "taken"
    with taken.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    assert os.statvfs(folder).f_bavail == 0
    return taken


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, last = [], {pid}
    while last:
        last = {child for child, parent in parents.items() if parent in last}
        found += sorted(last)
    return found


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
