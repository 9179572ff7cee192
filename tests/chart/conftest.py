# SPDX-License-Identifier: Apache-2.0
"""helm, built once, and what the chart renders."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
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
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((CHART / "ci").glob("*.yaml"))
}
"""One values file a feature."""


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {[(item['kind'], item['metadata']['name']) for item in objects]}"
    return found[0]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """The objects of those kinds."""
    return [item for item in objects if item["kind"] in kinds]


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
    """The objects that the chart renders for some values, in a namespace, on a cluster that knows further kinds."""

    @cache
    def rendered(values: str, namespace: str, knows: tuple[str, ...], chart: Path) -> list[Object]:
        known = [argument for kind in knows for argument in ("--api-versions", kind)]
        place = ["--namespace", namespace, "--kube-version", KUBE_VERSION]
        done = helm("template", "kinema", str(chart), *place, *known, values=json.loads(values))
        assert done.returncode == 0, done.stderr
        return [found for found in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if found]

    def run(
        values: Values, *, namespace: str = "kinema-system", knows: tuple[str, ...] = (), chart: Path = CHART
    ) -> list[Object]:
        return deepcopy(rendered(json.dumps(values, sort_keys=True), namespace, knows, chart))

    return run


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A real control plane without nodes."""
    with control_plane(nodes=1) as running:
        yield running
