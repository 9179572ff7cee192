# SPDX-License-Identifier: Apache-2.0
"""What the chart renders, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kinema_demo.install import CHART, ROOT

from kinema_operator.settings import Settings

from tests.chart.conftest import KUBE_VERSION, VALUES, Helm, Object, Render, Values

POOL = {"accelerator": "cpu", "devicesPerNode": 1}
EXAMPLES = sorted((ROOT / "examples" / "pools").glob("*.yaml"))


def named(objects: list[Object], kind: str, name: str) -> Object:
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {[item['metadata']['name'] for item in objects]}"
    return found[0]


def settings(objects: list[Object]) -> Settings:
    return Settings.model_validate(
        yaml.safe_load(named(objects, "ConfigMap", "kinema-config")["data"]["operator.yaml"])
    )


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_lint_has_nothing_to_say(helm: Helm, values: Values) -> None:
    done = helm("lint", str(CHART), "--strict", "--kube-version", KUBE_VERSION, values=values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"WARNING|ERROR", done.stdout), done.stdout


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replicsa": 2}, "additional properties 'replicsa' not allowed"),
        ({"operator": {"replica": 2}}, "additional properties 'replica' not allowed"),
        ({"images": {"familys": {}}}, "additional properties 'familys' not allowed"),
        ({"images": {"families": {"wan2.1": {"gpu": "x"}}}}, "additional properties 'gpu' not allowed"),
        ({"operator": {"workers": 0}}, "minimum: got 0, want 1"),
        ({"images": {"pullPolicy": "Sometimes"}}, "must be one of"),
        ({"watchNamespaces": "team-a"}, "want array"),
        ({"pools": {"h100": {**POOL, "devicePerNode": 8}}}, "additional properties 'devicePerNode' not allowed"),
        ({"pools": {"h100": {"accelerator": "gpu", "devicesPerNode": 8}}}, "must be one of"),
        ({"pools": {"Not_A_Name": POOL}}, "does not match pattern"),
    ],
)
def test_a_mistyped_value_is_refused(helm: Helm, values: Values, complaint: str) -> None:
    done = helm("template", "kinema", str(CHART), "--kube-version", KUBE_VERSION, values=values)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_the_operator_reads_the_settings_that_the_chart_writes(render: Render) -> None:
    found = settings(render(VALUES["everything"], namespace="mine"))
    assert found.images == {
        "stage": "registry.example.com/kinema/stage:0.1.0",
        "wan2.1/cpu": "registry.example.com/kinema/wan2.1:0.1.0",
        "wan2.1/nvidia": "registry.example.com/kinema/wan2.1:0.1.0",
    }
    assert found.image_pull_policy == "Always"
    assert found.server.url == "https://kinema-server.mine.svc"
    assert found.server.namespace == "mine"
    assert (found.workers, found.resync_seconds) == (2, 60)
    assert settings(render(VALUES["two-namespaces"])).watch_namespaces == ["team-a", "team-b"]
    assert not found.server.brought
    own = settings(render(VALUES["own-certificate"])).server
    assert (own.secret, own.brought) == ("mine", True)


def test_new_settings_make_a_new_operator_pod(render: Render) -> None:
    def checksum(values: Values) -> str:
        deployment = named(render(values), "Deployment", "kinema-operator")
        found: str = deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return found

    assert checksum({}) == checksum({"server": {"replicas": 2}})
    assert checksum({}) != checksum({"operator": {"workers": 3}})


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_deployments_keep_the_restricted_standard(render: Render, values: Values) -> None:
    deployments = [item for item in render(values) if item["kind"] == "Deployment"]
    assert {item["metadata"]["name"] for item in deployments} == {"kinema-operator", "kinema-server"}
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "configMap", "secret", "emptyDir"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_no_rule_has_a_wildcard(render: Render, values: Values) -> None:
    roles = [item for item in render(values) if item["kind"] in ("Role", "ClusterRole")]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert not any("*" in word for words in rule.values() for word in words), role["metadata"]["name"]


def test_two_operators_on_two_nodes_where_there_are_two(render: Render) -> None:
    objects = render({})
    deployment = named(objects, "Deployment", "kinema-operator")
    assert deployment["spec"]["replicas"] == 2
    (term,) = preferred(deployment)
    assert term["topologyKey"] == "kubernetes.io/hostname"
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert term["labelSelector"]["matchLabels"] == labels
    assert labels.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert named(objects, "PodDisruptionBudget", "kinema-operator")["spec"] == {
        "maxUnavailable": 1,
        "selector": {"matchLabels": labels},
    }


def preferred(deployment: Object) -> list[Object]:
    affinity = deployment["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    return [entry["podAffinityTerm"] for entry in affinity["preferredDuringSchedulingIgnoredDuringExecution"]]


def test_an_affinity_of_the_users_own_stands_alone(render: Render) -> None:
    deployment = named(render(VALUES["everything"]), "Deployment", "kinema-operator")
    assert deployment["spec"]["template"]["spec"]["affinity"] == {"nodeAffinity": {}}


def test_a_single_replica_does_not_stop_a_drain(render: Render) -> None:
    objects = render({"operator": {"replicas": 1}, "server": {"replicas": 1}})
    assert not [item for item in objects if item["kind"] == "PodDisruptionBudget"]


def rights(objects: list[Object], account: str) -> set[tuple[str, str, str]]:
    """(scope, resource, verb) of a service account; scope is a namespace, or `*` for all."""
    roles = {(item["kind"], item["metadata"]["name"]): item["rules"] for item in objects if "rules" in item}
    found = set()
    for item in objects:
        if item["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if not any(subject.get("name") == account for subject in item["subjects"]):
            continue
        scope = item["metadata"].get("namespace", "*")
        for rule in roles[item["roleRef"]["kind"], item["roleRef"]["name"]]:
            found |= {(scope, resource, verb) for resource in rule["resources"] for verb in rule["verbs"]}
    return found


def test_secrets_and_leases_are_touched_at_home_only(render: Render) -> None:
    objects = render({}, namespace="mine")
    mine = {right for right in rights(objects, "kinema-operator") if right[1] in ("secrets", "leases")}
    assert {scope for scope, _, _ in mine} == {"mine"}
    assert not {right for right in rights(objects, "kinema-server") if right[1] in ("secrets", "leases")}
    rules = named(objects, "Role", "kinema-operator")["rules"]
    unnamed = {verb for rule in rules if "resourceNames" not in rule for verb in rule["verbs"]}
    assert unnamed == {"create"}, "everything but create is bound to a name"


def test_a_certificate_of_the_users_own_is_only_read(render: Render) -> None:
    held = rights(render(VALUES["own-certificate"]), "kinema-operator")
    assert {verb for _, resource, verb in held if resource == "secrets"} == {"get"}


def test_with_watched_namespaces_no_right_on_jobs_reaches_further(render: Render) -> None:
    objects = render(VALUES["two-namespaces"])
    for account in ("kinema-operator", "kinema-server"):
        everywhere = {resource for scope, resource, _ in rights(objects, account) if scope == "*"}
        assert everywhere <= {
            "trainingpools",
            "customresourcedefinitions",
            "tokenreviews",
            "subjectaccessreviews",
        }
        there = {scope for scope, resource, _ in rights(objects, account) if resource == "videotrainingjobs"}
        assert there == {"team-a", "team-b"}


def test_the_crds_are_those_of_the_models(render: Render) -> None:
    rendered = {item["metadata"]["name"]: item for item in render({}) if item["kind"] == "CustomResourceDefinition"}
    sources = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    assert {source["metadata"]["name"] for source in sources} == set(rendered)
    for source in sources:
        found = rendered[source["metadata"]["name"]]
        assert found["spec"] == source["spec"]
        keep = {"helm.sh/resource-policy": "keep"}
        assert found["metadata"]["annotations"] == source["metadata"]["annotations"] | keep


def test_crds_can_be_left_to_others(render: Render) -> None:
    assert not [item for item in render(VALUES["nothing-shared"]) if item["kind"] == "CustomResourceDefinition"]
    dropped = [item for item in render(VALUES["everything"]) if item["kind"] == "CustomResourceDefinition"]
    assert dropped
    assert not any("helm.sh/resource-policy" in item["metadata"].get("annotations", {}) for item in dropped)


def test_copies_in_the_chart_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "chart_sync.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}run `make crds`"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_pools_fit_the_values(render: Render, path: Path) -> None:
    example: dict[str, Any] = yaml.safe_load(path.read_text())
    name = example["metadata"]["name"]
    assert named(render({"pools": {name: example["spec"]}}), "TrainingPool", name)["spec"] == example["spec"]


def test_two_releases_do_not_share_cluster_roles(render: Render) -> None:
    def cluster_wide(namespace: str) -> set[str]:
        kinds = ("ClusterRole", "ClusterRoleBinding")
        return {item["metadata"]["name"] for item in render({}, namespace=namespace) if item["kind"] in kinds}

    assert not cluster_wide("kinema-system") & cluster_wide("mine")
