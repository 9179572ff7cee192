# SPDX-License-Identifier: Apache-2.0
"""The operator as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from kinema_cluster.control_plane import free_ports

from tests.controlplane.installation import HOME

ELECTION = {"leaseSeconds": 6, "renewSeconds": 4, "retrySeconds": 0.5}


class Running(Protocol):
    """A process, as subprocess has it."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Operator:
    """The operator's process, which may be killed and started again."""

    folder: Path
    probe_port: int
    metrics_port: int
    identity: str = "kinema-operator-0"
    process: Running | None = None
    starts: int = 0

    def start(self) -> None:
        """Start it; a restarted container of a pod has the same identity."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "POD_NAME": self.identity,
            "POD_NAMESPACE": HOME,
        }
        self.process = self.spawn(environment)
        self.starts += 1

    def spawn(self, environment: dict[str, str]) -> Running:
        """A new process; it writes to operator.log."""
        with (self.folder / "operator.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "kinema_operator", "--config", str(self.folder / "operator.yaml")],
                stdout=log,
                stderr=log,
                env=environment,
            )

    def ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log()
        try:
            return self.probe("/readyz") == 200
        except OSError:
            return False

    def probe(self, path: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.probe_port}{path}", timeout=5) as answer:
            return int(answer.status)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    def kill(self) -> None:
        """SIGKILL, as a lost node would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, as kubelet would; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def log(self) -> str:
        return (self.folder / "operator.log").read_text()


def written(folder: Path, config: Mapping[str, Any], **settings: Any) -> tuple[int, int]:
    """Write the operator's kubeconfig and settings into its folder; its ports for probes and metrics."""
    (folder / "kubeconfig").write_text(json.dumps(config))
    probe_port, metrics_port = free_ports(2)
    full = {
        "images": {"stage": "kinema/stage:1", "wan2.1/cpu": "kinema/wan2.1:1"},
        "probePort": probe_port,
        "metricsPort": metrics_port,
        "election": ELECTION,
        **settings,
    }
    (folder / "operator.yaml").write_text(yaml.safe_dump(full))
    return probe_port, metrics_port
