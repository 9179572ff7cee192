# SPDX-License-Identifier: Apache-2.0
"""A control plane without nodes, for tests: real etcd and Kubernetes, pods that only kwok pretends to run."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinema_cluster import build, leftovers, packages, processes, webhook_process
from kinema_cluster.api import Api, condition
from kinema_cluster.build import KWOK, Progress
from kinema_cluster.components import Plane, Ports
from kinema_cluster.errors import ClusterError
from kinema_cluster.paths import Layout, control_planes
from kinema_cluster.record import Record, boot_id, load, locked
from kinema_cluster.supervisor import Supervisor

HOST = "127.0.0.1"
TOOLS = (build.KUBERNETES, build.TRAINING_OPERATOR, build.KWOK, build.NODE)
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
# Nodes and pods become ready at once; a Job's pods succeed; nodes renew their lease.
STAGES = ("node/fast/node-initialize.yaml", "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml", "pod/fast")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class FakeNode:
    """A node that only kwok keeps alive."""

    name: str
    resources: Mapping[str, str] = field(default_factory=dict)
    """Extended resources on top of cpu, memory and pods, such as nvidia.com/gpu: "8"."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        capacity = {"cpu": "64", "memory": "512Gi", "pods": "500", "ephemeral-storage": "2Ti", **self.resources}
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", "type": "kwok", **self.labels}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
            "status": {"capacity": capacity, "allocatable": capacity},
        }


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A running control plane."""

    name: str
    layout: Layout
    server: str
    api: Api

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """What kubectl prints; ClusterError with its words if it fails."""
        return self.api.kubectl(*arguments, text=text)

    def apply(self, objects: Iterable[object]) -> None:
        """Apply objects on the server's side."""
        self.api.apply(objects)

    def processes(self) -> dict[str, processes.Process]:
        """The components that run."""
        record = load(self.layout.record)
        return record.living() if record else {}

    def stop(self) -> None:
        """End all of its processes and remove its files. Doing it twice is doing it once."""
        clear(self.layout)


@contextlib.contextmanager
def control_plane(
    name: str | None = None,
    *,
    nodes: int | Sequence[FakeNode] = 2,
    training_operator: bool = True,
    progress: Progress = lambda line: None,
) -> Iterator[ControlPlane]:
    """A control plane for the length of a `with` block; it ends too when this process is killed inside the block."""
    name = name or f"t{os.getpid()}-{next(_numbers)}"
    guard = _Guard(layout_of(name))
    try:
        yield start(name, nodes=nodes, training_operator=training_operator, progress=progress)
    finally:
        guard.release()


def start(
    name: str, *, nodes: int | Sequence[FakeNode] = 2, training_operator: bool = True, progress: Progress = print
) -> ControlPlane:
    """Start the control plane `name`, or bring back what died of it; one that runs is returned as it is."""
    layout = layout_of(name)
    packages.ensure(packages.CONTROL_PLANE, progress=progress)
    build.ensure(*TOOLS, progress=progress)
    with locked(layout.root):
        record = load(layout.record)
        if record is None or not record.living():
            clear(layout)
            record = Record(path=layout.record, kind="control-plane", boot=boot_id(), details={"ports": free_ports(7)})
            record.save()
        plane = _plane(layout, record)
        supervisor = Supervisor(plane=plane, record=record)
        if not (record.ready and len(record.living()) == len(record.processes)):
            fakes = [FakeNode(f"node-{number}") for number in range(nodes)] if isinstance(nodes, int) else nodes
            _bring_up(supervisor, nodes=list(fakes), training_operator=training_operator)
        return ControlPlane(name=name, layout=layout, server=plane.server, api=supervisor.api())


def layout_of(name: str) -> Layout:
    """The files of the control plane `name` of this user."""
    if not NAME.fullmatch(name):
        raise ClusterError(f"{name!r} is no name of a control plane: use a-z, 0-9 and -, at most 40")
    return Layout(control_planes() / name)


def names() -> list[str]:
    """This user's control planes, also dead ones that left files."""
    root = control_planes()
    return sorted(entry.parent.name for entry in root.glob("*/cluster.json"))


def clear(layout: Layout) -> None:
    """Stop and remove what there is of a control plane."""
    record = load(layout.record)
    if record:
        # All at once and at once: nothing here is worth a graceful end.
        processes.stop(record.living().values(), grace=0)
    leftovers.remove(layout.root)
    with contextlib.suppress(OSError):
        layout.root.parent.rmdir()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            holder = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            holder.bind((HOST, 0))
            found.append(holder.getsockname()[1])
        return found


def kwok_command(plane: Plane) -> list[str]:
    return [
        str(KWOK.binary("kwok")),
        f"--kubeconfig={plane.layout.kubeconfig}",
        f"--config={plane.config('kwok.yaml')}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        "--node-lease-duration-seconds=40",
        "--cidr=10.0.0.1/16",
        "--node-ip=10.0.0.1",
    ]


def stages(root: Path) -> str:
    """The stages that kwok brings, as one configuration file."""
    files: list[Path] = []
    for entry in STAGES:
        path = root / entry
        files += sorted(path.glob("pod-*.yaml")) if path.is_dir() else [path]
    return "\n---\n".join(file.read_text() for file in files)


def _plane(layout: Layout, record: Record) -> Plane:
    ports = record.details["ports"]
    return Plane(layout=layout, host=HOST, ports=Ports(*ports[:5]), nodes_are_real=False)


def _bring_up(supervisor: Supervisor, *, nodes: list[FakeNode], training_operator: bool) -> None:
    plane, layout, api_ports = supervisor.plane, supervisor.layout, supervisor.record.details["ports"]
    layout.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    supervisor.make_credentials()
    supervisor.start_api_server()
    supervisor.write_config("kwok.yaml", stages(KWOK.home() / "manifests"))
    supervisor.wait_for_api_server()
    supervisor.start_controllers()
    supervisor.ensure("kwok", kwok_command(plane))
    api = supervisor.api()
    if training_operator:
        webhook_process.start(supervisor, webhook_port=api_ports[5], probe_port=api_ports[6])
    for node in nodes:
        if api.get(f"/api/v1/nodes/{node.name}") is None:
            api.request("POST", "/api/v1/nodes", node.manifest())

    def settled() -> bool:
        ready = [condition(api.get(f"/api/v1/nodes/{node.name}"), "Ready") for node in nodes]
        account = api.get("/api/v1/namespaces/default/serviceaccounts/default")
        serving = not training_operator or webhook_process.ready(api_ports[6])
        return all(ready) and account is not None and serving

    needs = list(supervisor.record.processes)
    supervisor.wait("the control plane was not ready", settled, seconds=60, needs=needs)
    supervisor.record.ready = True
    supervisor.record.save()


class _Guard:
    """A small process that clears a control plane when its user's end of a pipe closes, however that happens."""

    def __init__(self, layout: Layout) -> None:
        tools = str(Path(__file__).resolve().parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kinema_cluster.guardian", str(layout.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=processes.environment(os.environ) | {"PYTHONPATH": tools},
            start_new_session=True,
        )

    def release(self) -> None:
        """Close the pipe and wait until everything is gone."""
        assert self._process.stdin
        self._process.stdin.close()
        if self._process.wait(timeout=60):
            raise ClusterError("the guardian of a control plane failed; its words are above")
