# SPDX-License-Identifier: Apache-2.0
"""The chart on a real API server: everything it renders is accepted, and pools live as one expects."""

from __future__ import annotations

import json

import pytest
from kinema_demo.install import CHART, pool_spec

from kinema_cluster.control_plane import ControlPlane

from tests.chart.conftest import VALUES, Helm, Object, Render, Values, of_kind
from tests.chart.shapes import FOREIGN

pytestmark = pytest.mark.controlplane
NAMESPACE = "kinema-system"
NO_PODS: Values = {"operator": {"replicas": 0}, "server": {"replicas": 0}}
"""There are no images: with no pods all is ready at once, so that `--wait` ends."""
JOB: Object = {
    "apiVersion": "kinema.dev/v1alpha1",
    "kind": "VideoTrainingJob",
    "metadata": {"name": "wan", "namespace": "team-a"},
    "spec": {
        "model": {"name": "wan2.1-t2v-1.3b", "weights": {"uri": "pvc://models/wan"}},
        "dataset": {"uri": "pvc://datasets/cats"},
        "storage": {"uri": "pvc://training/kinema"},
        "defaults": {"pool": "cpu"},
    },
}


def definition(api_version: str, kind: str) -> Object:
    """A stand-in for somebody else's CRD, which lets everything in: shapes.py says what the kind allows."""
    group, version = api_version.split("/")
    plural = kind.lower() + "s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    }


@pytest.fixture(scope="module")
def prepared(plane: ControlPlane, render: Render) -> ControlPlane:
    """The control plane with the namespaces that the values name."""
    names = [NAMESPACE, "team-a", "team-b", "monitoring"]
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metas = [{"name": name, "labels": labels} for name in names]
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta} for meta in metas)
    return plane


def test_install_upgrade_uninstall(prepared: ControlPlane, helm: Helm) -> None:
    def release(*arguments: str, values: Values | None = None) -> None:
        done = helm(*arguments, "--namespace", NAMESPACE, values=values, kubeconfig=prepared.kubeconfig)
        assert done.returncode == 0, done.stderr

    def upgrade(**pools: object) -> None:
        release("upgrade", "kinema", str(CHART), values={**NO_PODS, "pools": pools})

    cpu = pool_spec("cpu")
    changed = {**cpu, "description": "changed"}
    release("install", "kinema", str(CHART), "--wait", values={**NO_PODS, "pools": {"cpu": cpu}})
    first = pool(prepared, "cpu")
    assert first["spec"] == cpu
    upgrade(cpu=cpu)
    upgrade(cpu=changed, more=cpu)
    assert pool(prepared, "cpu")["spec"] == changed
    assert pool(prepared, "more")["spec"] == cpu
    upgrade(cpu=cpu, more=cpu)
    assert pool(prepared, "cpu")["spec"] == cpu, "a field that is left out is taken away"
    release("rollback", "kinema", "3")
    assert pool(prepared, "cpu")["spec"] == changed
    upgrade(cpu=changed)
    assert pool(prepared, "more")["spec"] == cpu, "a pool that leaves the list stays"
    upgrade(cpu=changed, more=changed)
    assert pool(prepared, "more")["spec"] == changed, "and may come back as another"

    prepared.apply([JOB])
    uid = prepared.kubectl("get", "vtj", "wan", "-n", "team-a", "-o", "jsonpath={.metadata.uid}")
    release("upgrade", "kinema", str(CHART), values={"operator": {"settings": {"workers": 3}}})
    release("uninstall", "kinema", "--wait")
    assert prepared.kubectl("get", "deployments", "-n", NAMESPACE, "-o", "name") == ""
    assert pool(prepared, "cpu")["spec"] == changed, "pools outlive an uninstall"
    kept = prepared.kubectl("get", "vtj", "wan", "-n", "team-a", "-o", "jsonpath={.metadata.uid}")
    assert kept == uid, "jobs outlive upgrade and uninstall"

    release("install", "kinema", str(CHART), values={**NO_PODS, "pools": {"cpu": changed}})
    upgrade(cpu=cpu)
    last = pool(prepared, "cpu")
    assert last["spec"] == cpu
    assert last["metadata"]["uid"] == first["metadata"]["uid"], "it was there all the time"
    release("uninstall", "kinema", "--wait")

    refused = ("install", "again", str(CHART), "--namespace", NAMESPACE)
    alone: Values = {**NO_PODS, "crds": {"install": False}}
    done = helm(*refused, values={**alone, "pools": {"cpu": cpu}}, kubeconfig=prepared.kubeconfig)
    assert 'TrainingPool "cpu"' in done.stderr and "cannot be imported into the current release" in done.stderr
    release("install", "again", str(CHART), values={**alone, "pools": {"other": cpu}})
    assert pool(prepared, "other")["spec"] == cpu
    release("uninstall", "again", "--wait")
    assert definitions(prepared), "CRDs that others install are others' to remove"


def pool(plane: ControlPlane, name: str) -> Object:
    found: Object = json.loads(plane.kubectl("get", "tpool", name, "-o", "json"))
    return found


def definitions(plane: ControlPlane) -> list[str]:
    return [line for line in plane.kubectl("get", "crd", "-o", "name").splitlines() if line.endswith(".kinema.dev")]


def test_a_release_that_keeps_nothing_takes_the_crds_with_it(prepared: ControlPlane, helm: Helm) -> None:
    found = definitions(prepared)
    if found:
        prepared.kubectl("delete", "--wait", *found)
    place = ["--namespace", NAMESPACE]
    cpu = pool_spec("cpu")
    values: Values = {**NO_PODS, "crds": {"keep": False}, "pools": {"cpu": {**cpu, "description": "old"}}}
    done = helm("install", "brief", str(CHART), "--wait", *place, values=values, kubeconfig=prepared.kubeconfig)
    assert done.returncode == 0, done.stderr
    assert "CAUTION: crds.keep is false" in done.stdout
    assert len(definitions(prepared)) == 2
    values["pools"] = {"cpu": cpu}
    done = helm("upgrade", "brief", str(CHART), *place, values=values, kubeconfig=prepared.kubeconfig)
    assert done.returncode == 0, done.stderr
    assert pool(prepared, "cpu")["spec"] == cpu, "though the very first upgrade changed what a hook had made"
    done = helm("uninstall", "brief", "--wait", *place, kubeconfig=prepared.kubeconfig)
    assert done.returncode == 0, done.stderr
    assert definitions(prepared) == []


def test_monitors_appear_with_the_kinds_that_a_cluster_knows(prepared: ControlPlane, helm: Helm) -> None:
    """`create: auto` on a real API server, before and after it learns of PodMonitor."""
    version = "monitoring.coreos.com/v1"

    def monitors() -> list[str]:
        command = ("install", "kinema", str(CHART), "--namespace", NAMESPACE, "--dry-run=server")
        done = helm(*command, kubeconfig=prepared.kubeconfig)
        assert done.returncode == 0, done.stderr
        manifest, _, _ = done.stdout.partition("\nNOTES:\n")
        return [line for line in manifest.splitlines() if line.startswith("kind: ") and line.endswith("Monitor")]

    crd = definition(version, "PodMonitor")
    prepared.kubectl("delete", "crd", crd["metadata"]["name"], "--ignore-not-found", "--wait")
    assert monitors() == []
    prepared.apply([crd])
    prepared.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", crd["metadata"]["name"])
    assert monitors() == ["kind: PodMonitor"] * 3


@pytest.fixture(scope="module")
def complete(prepared: ControlPlane, render: Render) -> ControlPlane:
    """The control plane with what others need that are only tried: every kind, and the account of the doctor's pod."""
    foreign = [definition(version, kind) for version, kinds in FOREIGN.items() for kind in kinds]
    prepared.apply([*of_kind(render({}), "CustomResourceDefinition", "ServiceAccount"), *foreign])
    prepared.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return prepared


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_is_accepted(complete: ControlPlane, render: Render, values: Values) -> None:
    """Strictly validated, which refuses unknown and doubled fields."""
    objects = [item for item in render({"pools": {"cpu": pool_spec("cpu")}, **values})]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    printed = complete.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", text=text
    )
    assert len(printed.splitlines()) == len(objects)
