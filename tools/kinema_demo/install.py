# SPDX-License-Identifier: Apache-2.0
"""Installing the chart, as an administrator would."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kinema_cluster.build import HELM, ensure
from kinema_cluster.paths import cache
from kinema_demo.errors import DemoError
from kinema_demo.kubectl import Kubectl

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts" / "kinema"
POOLS = ROOT / "examples" / "pools"
NAMESPACE = "kinema-system"
RELEASE = "kinema"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def helm_environment(kubeconfig: Path) -> dict[str, str]:
    """Helm's environment: this cluster, and no state in the user's home."""
    home = cache() / "helm"
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    return {**os.environ, **folders, "KUBECONFIG": str(kubeconfig)}


def pool_spec(name: str) -> dict[str, Any]:
    """The spec of a pool of examples/pools."""
    found: dict[str, Any] = yaml.safe_load((POOLS / f"{name}.yaml").read_text(encoding="utf-8"))["spec"]
    return found


def values(images: Mapping[str, str], *, pull_policy: str = "IfNotPresent") -> dict[str, Any]:
    """The chart's values for images by folder name (control-plane, stage, wan2.1), with the cpu pool."""
    wan = images["wan2.1"]
    return {
        "images": {
            "pullPolicy": pull_policy,
            "controlPlane": images["control-plane"],
            "stage": images["stage"],
            "families": {"wan2.1": {"cpu": wan, "nvidia": wan, "ascend": ""}},
        },
        "pools": {"cpu": pool_spec("cpu")},
        # A small cluster for trying things out: a second replica would only cost memory.
        "operator": {"replicas": 1},
    }


def namespace(name: str, *, labels: Mapping[str, str] = RESTRICTED) -> dict[str, Any]:
    """A namespace; its pods must keep the restricted standard unless the labels say otherwise."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}}


def install(kubectl: Kubectl, chosen: Mapping[str, Any]) -> None:
    """Install or upgrade the release, and wait until everything is ready.

    Raises:
        DemoError: helm failed; with what its pods say.
    """
    ensure(HELM)
    kubectl.apply(namespace(NAMESPACE))
    command = [
        str(HELM.binary("helm")), "upgrade", "--install", RELEASE, str(CHART),
        "--namespace", NAMESPACE, "--values", "-", "--wait", "--timeout", "5m",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        input=json.dumps(chosen),
        capture_output=True,
        text=True,
        env=helm_environment(kubectl.kubeconfig),
        timeout=400,
    )
    if done.returncode:
        system = kubectl.within(NAMESPACE)
        pods = system.attempt("get", "pods", "-o", "wide").stdout
        logs = system.attempt("logs", "-l", "app.kubernetes.io/name=kinema", "--tail=20", "--prefix").stdout
        raise DemoError(f"helm: {done.stderr.strip()}\n{pods}\n{logs}")
