# SPDX-License-Identifier: Apache-2.0
"""Kinema on a control plane as the chart installs it, but for the pods: definitions, account, rules and a pool."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from kinema_cluster.build import HELM, ensure
from kinema_cluster.control_plane import ControlPlane

ROOT = Path(__file__).parents[2]
CRDS = sorted((ROOT / "crds").glob("kinema.dev_*.yaml"))
HOME = "kinema-system"


def install(plane: ControlPlane) -> None:
    """All that the operator needs to find."""
    files = [f"--filename={path}" for path in CRDS]
    plane.kubectl("apply", "--server-side", *files)
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *files)
    plane.kubectl("create", "namespace", HOME)
    plane.kubectl("apply", "-f", "-", text=rules())
    plane.apply([yaml.safe_load((ROOT / "examples" / "pools" / "cpu.yaml").read_text())])


def rules() -> str:
    """The operator's account and rights, as the chart has them."""
    ensure(HELM)
    shown = ["--show-only=templates/serviceaccounts.yaml", "--show-only=templates/rbac-operator.yaml"]
    command = [str(HELM.binary("helm")), "template", "kinema", str(ROOT / "charts" / "kinema"), "-n", HOME]
    command += ["--kube-version=v1.36.0", *shown]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kubeconfig(plane: ControlPlane, *, server: str = "") -> dict[str, Any]:
    """The operator's own account, by a token; at another address of the API server if one is given."""
    token = plane.kubectl("create", "token", "kinema-operator", "-n", HOME, "--duration=4h").strip()
    config: dict[str, Any] = json.loads(plane.kubectl("config", "view", "--raw", "-o", "json"))
    config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
    if server:
        config["clusters"][0]["cluster"] = {"server": server}
    return config
