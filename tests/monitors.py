# SPDX-License-Identifier: Apache-2.0
"""The chart's monitors, as Prometheus's operator would find them in a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from kinema_demo.install import CHART, NAMESPACE, RELEASE, helm_environment

from kinema_cluster.build import HELM, ensure

from tests.chart.conftest import KUBE_VERSION


def monitors() -> list[dict[str, Any]]:
    """Every PodMonitor that the chart makes by default where the cluster knows the kind."""
    ensure(HELM)
    command = [str(HELM.binary("helm")), "template", RELEASE, str(CHART), "--namespace", NAMESPACE]
    command += ["--kube-version", KUBE_VERSION, "--show-only", "templates/monitors.yaml"]
    command += ["--set", "monitoring.monitor.create=always"]
    nowhere = helm_environment(Path(os.devnull))
    done = subprocess.run(command, capture_output=True, text=True, env=nowhere, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = [item for item in yaml.safe_load_all(done.stdout) if item]
    assert {item["kind"] for item in found} == {"PodMonitor"}, found
    return found
