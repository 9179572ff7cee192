# SPDX-License-Identifier: Apache-2.0
"""The chart on a real API server: everything it renders is accepted, and pools live as one expects."""

from __future__ import annotations

import json

import pytest
from kinema_demo.install import CHART, pool_spec

from kinema_cluster.control_plane import ControlPlane

from tests.chart.conftest import VALUES, Helm, Render, Values

pytestmark = pytest.mark.controlplane
NAMESPACE = "kinema-system"


@pytest.fixture(scope="module")
def prepared(plane: ControlPlane, render: Render) -> ControlPlane:
    """The control plane with the namespaces that the values name."""
    names = [NAMESPACE, "team-a", "team-b"]
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metas = [{"name": name, "labels": labels} for name in names]
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta} for meta in metas)
    return plane


def test_install_upgrade_uninstall(prepared: ControlPlane, helm: Helm) -> None:
    def release(*arguments: str, values: Values | None = None) -> None:
        done = helm(*arguments, "--namespace", NAMESPACE, values=values, kubeconfig=prepared.kubeconfig)
        assert done.returncode == 0, done.stderr

    def pool(name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(prepared.kubectl("get", "tpool", name, "-o", "json"))
        return found

    # Without nodes nothing gets ready, so `--wait`, by which Helm also waits for the CRDs, cannot be used: install the
    # CRDs with a release that has no pools, and wait for them.
    cpu = pool_spec("cpu")
    release("install", "kinema", str(CHART))
    prepared.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "trainingpools.kinema.dev")
    release("upgrade", "kinema", str(CHART), values={"pools": {"cpu": cpu}})
    assert pool("cpu")["spec"] == cpu

    changed = {**cpu, "description": "changed"}
    release("upgrade", "kinema", str(CHART), values={"pools": {"cpu": changed, "more": cpu}})
    assert pool("cpu")["spec"] == changed
    assert pool("more")["spec"] == cpu

    release("uninstall", "kinema", "--wait")
    assert prepared.kubectl("get", "deployments", "-n", NAMESPACE, "-o", "name") == ""
    assert pool("cpu")["spec"] == changed, "pools outlive an uninstall"
    crds = prepared.kubectl("get", "crd", "-o", "name")
    assert "videotrainingjobs.kinema.dev" in crds, "jobs outlive an uninstall"

    release("install", "again", str(CHART), values={"pools": {"cpu": cpu}, "crds": {"install": False}})
    assert pool("cpu")["spec"] == cpu
    release("uninstall", "again", "--wait")


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_is_accepted(prepared: ControlPlane, render: Render, values: Values) -> None:
    """Strictly validated, which refuses unknown and doubled fields."""
    objects = [item for item in render({"pools": {"cpu": pool_spec("cpu")}, **values})]
    crds = [item for item in objects if item["kind"] == "CustomResourceDefinition"]
    if crds:
        prepared.apply(crds)
        prepared.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    printed = prepared.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", text=text
    )
    assert len(printed.splitlines()) == len(objects)
