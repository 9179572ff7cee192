# SPDX-License-Identifier: Apache-2.0
"""Seconds from a job's creation to its first pod: 50 VideoTrainingJobs at once against 50 PyTorchJobs at once.

Both run on one control plane without nodes of its own, one after the other. All times are those at which a client's
watch of the API server saw the object, on one clock.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from bench.common import REPOSITORY, Goal, Side, report
from kinema_api.names import LABEL_JOB_UID
from kinema_cluster import addons
from kinema_cluster.control_plane import ControlPlane, control_plane, free_ports

RATE = ("--kube-api-qps=500", "--kube-api-burst=500")
DEADLINE = 120.0
VTJ = "/apis/kinema.dev/v1alpha1/{}videotrainingjobs"
PYTORCH = "/apis/kubeflow.org/v1/{}pytorchjobs"
GANG_LABEL = "training.kubeflow.org/job-name"

Raw = dict[str, Any]


class Watch:
    """When each object of a collection was first seen, by a key."""

    def __init__(self, plane: ControlPlane, path: str) -> None:
        self.seen: list[tuple[float, Raw]] = []
        pki = plane.layout.pki
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        address = urlsplit(plane.server)
        self._connection = http.client.HTTPSConnection(
            address.hostname or "", address.port, context=tls, timeout=2 * DEADLINE
        )
        version = plane.api.get(path)["metadata"]["resourceVersion"]
        self._connection.request("GET", f"{path}?watch=true&resourceVersion={version}")
        self._answer = self._connection.getresponse()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while line := self._answer.readline():
            event = json.loads(line)
            if event["type"] == "ADDED":
                self.seen.append((time.monotonic(), event["object"]["metadata"]))


def measure(
    plane: ControlPlane, path: str, manifests: list[Raw], *, namespace: str, label: str, key: str
) -> list[float]:
    """Create all at once; the seconds to the first pod of each, sorted.

    Args:
        plane: the control plane.
        path: of the collection, with a place for the namespace.
        manifests: what to create.
        namespace: where.
        label: the pods' label that names their job.
        key: the job's metadata field that the label holds.
    """
    plane.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    jobs, pods = Watch(plane, path.format("")), Watch(plane, f"/api/v1/namespaces/{namespace}/pods")
    target = path.format(f"namespaces/{namespace}/")
    with ThreadPoolExecutor(len(manifests)) as pool:
        list(pool.map(lambda manifest: plane.api.request("POST", target, manifest), manifests))
    end = time.monotonic() + DEADLINE
    while True:
        first: dict[str, float] = {}
        for at, metadata in list(pods.seen):
            first.setdefault((metadata.get("labels") or {}).get(label, ""), at)
        created = {metadata[key]: at for at, metadata in list(jobs.seen)}
        if len(created) == len(manifests) and created.keys() <= first.keys():
            return sorted(first[name] - at for name, at in created.items())
        if time.monotonic() > end:
            raise SystemExit(f"{len(created)} jobs, pods of {len(first)} after {DEADLINE:.0f} s in {namespace}")
        time.sleep(0.02)


@contextlib.contextmanager
def operator(plane: ControlPlane) -> Iterator[None]:
    """The operator as a process with its default settings."""
    probe, metrics = free_ports(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            "images": {"stage": "kinema/stage:1", "wan2.1/cpu": "kinema/wan2.1:1"},
            "probePort": probe,
            "metricsPort": metrics,
            "server": {"url": ""},
        }
        (folder / "operator.yaml").write_text(yaml.safe_dump(settings))
        environment = os.environ | {"KUBECONFIG": str(plane.kubeconfig), "POD_NAMESPACE": "default"}
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "kinema_operator", "--config", str(folder / "operator.yaml")]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _ready(process, probe, folder / "log")
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def _ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the operator is not ready:\n{log.read_text()}")


def vtj(number: int) -> Raw:
    """A job of the examples."""
    manifest: Raw = yaml.safe_load((REPOSITORY / "examples" / "wan-job.yaml").read_text())
    return manifest | {"metadata": {"name": f"wan-{number}"}}


def gang(number: int) -> Raw:
    """A PyTorchJob of one master: like a job's first stage, one pod."""
    pod = {"spec": {"containers": [{"name": "pytorch", "image": "kinema/stage:1", "command": ["true"]}]}}
    spec = {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "restartPolicy": "Never", "template": pod}}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": f"gang-{number}"},
        "spec": spec,
    }


def p99(times: list[float]) -> float:
    """Of a sorted list, by the nearest rank."""
    return times[max(0, -(-99 * len(times) // 100) - 1)]


def main() -> None:
    """Measure both and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50, help="how many at once (50)")
    count = parser.parse_args().jobs
    addons.WORKERS = [*addons.WORKERS, *RATE]
    with control_plane() as plane:
        files = [f"--filename={path}" for path in sorted((REPOSITORY / "crds").glob("kinema.dev_*.yaml"))]
        plane.kubectl("apply", "--server-side", *files)
        plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *files)
        plane.apply([yaml.safe_load((REPOSITORY / "examples" / "pools" / "cpu.yaml").read_text())])
        theirs = measure(
            plane, PYTORCH, [gang(n) for n in range(count)], namespace="theirs", label=GANG_LABEL, key="name"
        )
        with operator(plane):
            ours = measure(plane, VTJ, [vtj(n) for n in range(count)], namespace="ours", label=LABEL_JOB_UID, key="uid")
    report(
        "reconcile_latency",
        ours=Side("VideoTrainingJob to its first pod, p99", p99(ours), "s", ours),
        reference=Side("PyTorchJob to its first pod, p99", p99(theirs), "s", theirs),
        goal=Goal(at_most=1.0),
        settings={"jobs": count, "trainingOperator": list(addons.WORKERS)},
    )


if __name__ == "__main__":
    main()
