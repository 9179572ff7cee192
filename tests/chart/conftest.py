# SPDX-License-Identifier: Apache-2.0
"""helm, built once, and what the chart renders."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kinema_demo.install import CHART, helm_environment

from kinema_cluster.build import HELM, ensure
from kinema_cluster.control_plane import ControlPlane, control_plane

Object = dict[str, Any]
Values = dict[str, Any]
Helm = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., list[Object]]

KUBE_VERSION = "1.36.3"
"""What `helm template`, which asks no cluster, takes the cluster for."""

VALUES: dict[str, Values] = {
    "defaults": {},
    "two-namespaces": {"watchNamespaces": ["team-a", "team-b"]},
    "own-certificate": {"server": {"tls": {"existingSecret": "mine"}, "replicas": 2}},
    "nothing-shared": {"crds": {"install": False}, "rbac": {"aggregate": False}},
    "everything": {
        "images": {
            "registry": "registry.example.com/",
            "pullPolicy": "Always",
            "pullSecrets": ["pull"],
            "families": {"wan2.1": {"ascend": ""}},
        },
        "operator": {
            "replicas": 2,
            "workers": 2,
            "resyncSeconds": 60,
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"team": "video"},
        },
        "server": {
            "replicas": 2,
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"team": "video"},
        },
        "crds": {"keep": False},
    },
}


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs helm on the chart; with no cluster unless a kubeconfig is given."""
    ensure(HELM)
    nowhere = tmp_path_factory.mktemp("helm") / "none.kubeconfig"

    def run(
        *arguments: str, values: Values | None = None, kubeconfig: Path = nowhere
    ) -> subprocess.CompletedProcess[str]:
        given = ["--values", "-"] if values is not None else []
        return subprocess.run(
            [str(HELM.binary("helm")), *arguments, *given],
            input=json.dumps(values) if values is not None else None,
            capture_output=True,
            text=True,
            env=helm_environment(kubeconfig),
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The objects that the chart renders for values."""

    def run(values: Values, *, namespace: str = "kinema-system") -> list[Object]:
        done = helm(
            "template", "kinema", str(CHART), "--namespace", namespace, "--kube-version", KUBE_VERSION, values=values
        )
        assert done.returncode == 0, done.stderr
        return [found for found in yaml.safe_load_all(done.stdout) if found]

    return run


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A real control plane without nodes."""
    with control_plane(nodes=1) as running:
        yield running
