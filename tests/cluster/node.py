# SPDX-License-Identifier: Apache-2.0
"""The local cluster's node from below: its containers are processes of this machine."""

from __future__ import annotations

import os
import signal

import pytest
from kinema_demo.kubectl import Object
from kinema_demo.target import Target

from kinema_cluster import images

from tests.cluster.jobs import until


def process_of(cluster: Target, pod: Object) -> int:
    """The first process of a pod's only container, by its pid on this machine."""
    if cluster.cluster is None:
        pytest.skip("containers of another machine cannot be killed from here")
    state = pod["status"]["containerStatuses"][0]
    container = state["containerID"].removeprefix("containerd://")
    tasks = images.ctr(cluster.cluster.layout.containerd_socket, "tasks", "list")
    return next(int(line.split()[1]) for line in tasks.splitlines() if line.startswith(container))


def kill(cluster: Target, pod: Object) -> None:
    """Kill -9 of a pod's container; comes back when the process is gone."""
    pid = process_of(cluster, pod)
    os.kill(pid, signal.SIGKILL)
    until(f"pid {pid} is gone", lambda: not _alive(pid), seconds=20)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
