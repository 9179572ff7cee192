# SPDX-License-Identifier: Apache-2.0
"""Where the local cluster keeps its files."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

GO_TOOLS = Path(__file__).resolve().parent.parent / "go"
FULL_STATE = Path("/var/lib/kinema")
MARKER = Path("/run/kinema-cluster.json")
"""Names the one full cluster of the machine; in /run, so that it does not outlive a reboot."""


def cache() -> Path:
    """The folder that survives `down`: built binaries and loaded images."""
    return Path(os.environ.get("KINEMA_CACHE") or Path.home() / ".cache" / "kinema")


def control_planes() -> Path:
    """The folder of this user's control planes without nodes."""
    return Path(tempfile.gettempdir()) / f"kinema-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one cluster, all under one folder."""

    root: Path

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def kubelet(self) -> Path:
        return self.root / "kubelet"

    @property
    def pod_logs(self) -> Path:
        return self.root / "pod-logs"

    @property
    def containerd(self) -> Path:
        return self.root / "containerd"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "admin.kubeconfig"

    @property
    def record(self) -> Path:
        return self.root / "cluster.json"

    @property
    def containerd_socket(self) -> Path:
        return self.containerd / "containerd.sock"

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"
