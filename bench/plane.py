# SPDX-License-Identifier: Apache-2.0
"""A control plane without nodes of its own, with Kinema's operator and training-operator as processes beside it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import yaml

from bench.common import REPOSITORY
from kinema_api.pool import PoolSpec
from kinema_cluster import addons, components
from kinema_cluster.control_plane import ControlPlane, control_plane, free_ports
from kinema_operator.decide import decide
from kinema_operator.observed import Observed
from kinema_operator.settings import Settings

RATE = ("--kube-api-qps=500", "--kube-api-burst=500")
"""Requests a second that training-operator and kube-controller-manager, which makes the pods of Jobs, may make.
Kinema's operator has no limit of its own; under their defaults the benchmarks would measure limiters."""
DEADLINE = 120.0
VTJ = "/apis/kinema.dev/v1alpha1/{}videotrainingjobs"
PYTORCH = "/apis/kubeflow.org/v1/{}pytorchjobs"
IMAGES = {"stage": "kinema/stage:1", "wan2.1/cpu": "kinema/wan2.1:1"}
CLIENTS = 16
"""Connections of `each`."""

Raw = dict[str, Any]


class Client:
    """One connection to the API server, kept open."""

    def __init__(self, plane: ControlPlane) -> None:
        pki = plane.layout.pki
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        address = urlsplit(plane.server)
        self.http = http.client.HTTPSConnection(address.hostname or "", address.port, context=tls, timeout=2 * DEADLINE)
        self.http.connect()

    def request(self, method: str, path: str, body: Raw | None = None) -> Raw:
        """The answer; OSError when the API server refuses."""
        data = None if body is None else json.dumps(body)
        self.http.request(method, path, data, {"Content-Type": "application/json"})
        answer = self.http.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise OSError(f"{method} {path}: {answer.status} {text[:500].decode()}")
        found: Raw = json.loads(text)
        return found


def each(plane: ControlPlane, method: str, calls: Sequence[tuple[str, Raw | None]], *, clients: int = CLIENTS) -> None:
    """Make many requests, over connections that stand before the first one is sent."""
    mine = threading.local()
    waiting = threading.Barrier(clients + 1)

    def connect() -> None:
        mine.client = Client(plane)
        waiting.wait(timeout=DEADLINE)

    def call(one: tuple[str, Raw | None]) -> None:
        mine.client.request(method, *one)

    with ThreadPoolExecutor(clients, initializer=connect) as pool:
        # An executor starts a thread a task as long as none is idle: these tasks are for the threads alone.
        ready = [pool.submit(lambda: None) for _ in range(clients)]
        waiting.wait(timeout=DEADLINE)
        for one in ready:
            one.result()
        list(pool.map(call, calls))


def until(what: str, holds: Callable[[], bool], *, seconds: float = DEADLINE, poll: float = 0.1) -> None:
    """Wait for a condition; SystemExit when it does not hold in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {seconds:.0f} s")
        time.sleep(poll)


@contextlib.contextmanager
def limited() -> Iterator[ControlPlane]:
    """A control plane whose two controllers of the comparison have the same rate, with Kinema's definitions.

    It has no nodes, so that no pod goes on: pretended ones would end the pods of Jobs at once, and those of PyTorchJobs
    never.
    """
    workers, controllers = addons.WORKERS, components.CONTROLLERS
    addons.WORKERS = [flag for flag in workers if not flag.startswith("--kube-api-")] + list(RATE)
    components.CONTROLLERS = [*controllers, *RATE]
    try:
        with control_plane(nodes=0) as plane:
            files = [f"--filename={path}" for path in sorted((REPOSITORY / "crds").glob("kinema.dev_*.yaml"))]
            plane.kubectl("apply", "--server-side", *files)
            plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *files)
            plane.apply([_example("pools/cpu.yaml")])
            yield plane
    finally:
        addons.WORKERS, components.CONTROLLERS = workers, controllers


@contextlib.contextmanager
def operator(plane: ControlPlane, **settings: Any) -> Iterator[int]:
    """Kinema's operator as a process with its default settings; its process id."""
    probe, metrics = free_ports(2)
    plane.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": "kinema-system"}})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said = {"images": IMAGES, "probePort": probe, "metricsPort": metrics, **settings}
        (folder / "operator.yaml").write_text(yaml.safe_dump(said))
        environment = os.environ | {"KUBECONFIG": str(plane.kubeconfig), "POD_NAMESPACE": "kinema-system"}
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "kinema_operator", "--config", str(folder / "operator.yaml")]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _ready(process, probe, folder / "log")
            yield process.pid
            if process.poll() is not None:
                raise SystemExit(f"the operator has ended:\n{(folder / 'log').read_text()[-3000:]}")
        finally:
            process.terminate()
            process.wait(timeout=30)


def training_operator(plane: ControlPlane) -> int:
    """The process id of training-operator."""
    return plane.processes()["training-operator"].pid


def processor_seconds(plane: ControlPlane, *, operator: int) -> dict[str, float]:
    """What each process has used so far: they tell more than time where other programs use the machine too."""
    pids = {name: process.pid for name, process in plane.processes().items()} | {"kinema-operator": operator}
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: time.user + time.system for name, time in times.items()}


def _ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    def leads() -> bool:
        if process.poll() is not None:
            raise SystemExit(f"the operator has ended:\n{log.read_text()}")
        # A replica that stands by is ready too.
        return b"leading as" in log.read_bytes() and _answers(port)

    until("the operator is not ready", leads)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def vtj(name: str, **policy: Any) -> Raw:
    """A job of the examples."""
    manifest = _example("wan-job.yaml")
    spec = {**manifest["spec"], **({"policy": policy} if policy else {})}
    return {**manifest, "metadata": {"name": name}, "spec": spec}


def gang(name: str, *, workers: int = 0, **policy: Any) -> Raw:
    """A PyTorchJob, a master and workers, with the pods that the first stage of a job has."""
    replica = {"replicas": 1, "restartPolicy": "Never", "template": _template()}
    replicas = {"Master": replica} | ({"Worker": {**replica, "replicas": workers}} if workers else {})
    spec = {"pytorchReplicaSpecs": replicas, **({"runPolicy": policy} if policy else {})}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name}, "spec": spec}


@functools.cache
def _example(name: str) -> Raw:
    found: Raw = yaml.safe_load((REPOSITORY / "examples" / name).read_text(encoding="utf-8"))
    return found


@functools.cache
def _template() -> Raw:
    """The pod template of a job's first stage."""
    pool = _example("pools/cpu.yaml")
    job = vtj("wan")
    job["metadata"] |= {"namespace": "default", "uid": "00000000-0000-0000-0000-000000000000", "generation": 1}
    observed = Observed(children=(), pools={pool["metadata"]["name"]: PoolSpec.model_validate(pool["spec"])})
    platform = Settings(images=IMAGES).platform(server_ca="")
    (child,) = decide(job, observed, platform, datetime.now(UTC)).create
    template: Raw = child["spec"]["template"]
    # The name by which training-operator knows the container; the labels of a job would make its operator look.
    (container,) = template["spec"]["containers"]
    pod = {**template["spec"], "containers": [{**container, "name": "pytorch"}]}
    return {"metadata": {"annotations": template["metadata"].get("annotations") or {}}, "spec": pod}
