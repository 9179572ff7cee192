# SPDX-License-Identifier: Apache-2.0
"""What the chart renders, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kinema_demo.install import CHART, ROOT

from kinema_operator.settings import Settings
from kinema_operator.tls import server_names
from kinema_server.settings import load_settings

from tests.chart.conftest import KUBE_VERSION, VALUES, Helm, Object, Render, Values, named, of_kind

POOL = {"accelerator": "cpu", "devicesPerNode": 1}
EXAMPLES = sorted((ROOT / "examples" / "pools").glob("*.yaml"))


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
        ({"operator": {"settings": {"workers": 0}}}, "minimum: got 0, want 1"),
        ({"operator": {"settings": {"worker": 1}}}, "additional properties 'worker' not allowed"),
        ({"operator": {"settings": {"logLevel": "loud"}}}, "must be one of"),
        ({"operator": {"settings": {"election": {"leaseSeconds": 9}}}}, "must be below renewSeconds, and that below"),
        ({"operator": {"replicas": "two"}}, "want integer"),
        ({"operator": {"resources": {"limits": {"memory": "1 GB"}}}}, "does not match pattern"),
        ({"server": {"settings": {"verdictSeconds": 61}}}, "maximum: got 61, want 60"),
        ({"server": {"ingress": {"host": "a"}}}, "additional properties 'host' not allowed"),
        ({"server": {"httpRoute": {"enabled": True}}}, "server.httpRoute.parentRefs: name the Gateway"),
        ({"server": {"tls": {"existingSecret": "a", "certManager": {"enabled": True}}}}, "exclude each other"),
        ({"monitoring": {"monitor": {"create": True}}}, "got boolean, want string"),
        ({"monitoring": {"monitor": {"kind": "Podmonitor"}}}, "must be one of"),
        ({"networkPolicy": {"dnsPorts": [0]}}, "minimum: got 0, want 1"),
        ({"networkPolicy": {"clients": [{"cidr": "10.0.0.0/8"}]}}, "additional properties 'cidr' not allowed"),
        ({"networkPolicy": {"stages": {"enabled": True}}}, "namespaces of watchNamespaces: list them"),
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
    found = settings(render(VALUES["images"], namespace="mine"))
    assert found.images == {
        "stage": "registry.example.com/kinema/stage:0.1.0",
        "wan2.1/ascend": "registry.example.com/kinema/wan2.1-ascend:0.1.0",
        "wan2.1/nvidia": "registry.example.com/kinema/wan2.1:0.1.0",
    }
    assert found.image_pull_policy == "Always"
    assert found.server.url == "https://kinema-server.mine.svc"
    assert found.server.namespace == "mine"
    chosen = settings(render(VALUES["settings"]))
    assert (chosen.workers, chosen.resync_seconds, chosen.log_level) == (2, 60, "debug")
    assert (chosen.election.lease_seconds, chosen.election.name) == (30, "kinema-operator")
    assert settings(render(VALUES["watch-namespaces"])).watch_namespaces == ["team-a", "team-b"]


@pytest.mark.parametrize(
    ("values", "secret", "brought"),
    [
        ("defaults", "kinema-server-tls", False),
        ("own-certificate", "mine", True),
        ("cert-manager", "kinema-server-certificate", True),
    ],
)
def test_operator_and_server_use_the_same_certificate(render: Render, values: str, secret: str, brought: bool) -> None:
    objects = render(VALUES[values])
    server = settings(objects).server
    assert (server.secret, server.brought) == (secret, brought)
    volumes = named(objects, "Deployment", "kinema-server")["spec"]["template"]["spec"]["volumes"]
    assert [volume["secret"]["secretName"] for volume in volumes if "secret" in volume] == [secret]
    made = {item["spec"]["secretName"] for item in of_kind(objects, "Certificate")}
    assert made == ({secret, "kinema-authority"} if values == "cert-manager" else set())


def test_the_certificate_of_cert_manager_bears_the_names_that_pods_use(render: Render) -> None:
    names = named(render(VALUES["cert-manager"], namespace="mine"), "Certificate", "kinema-server")["spec"]["dnsNames"]
    assert set(server_names(service="kinema-server", namespace="mine")) | {"kinema.example.com"} == set(names)


def test_the_server_reads_the_settings_that_the_chart_writes(render: Render, tmp_path: Path) -> None:
    objects = render(VALUES["settings"])
    path = tmp_path / "server.yaml"
    path.write_text(named(objects, "ConfigMap", "kinema-config")["data"]["server.yaml"])
    found = load_settings(path)
    assert (found.progress_interval_seconds, found.shutdown_seconds, found.log_level) == (5.5, 60, "warning")
    pod = named(objects, "Deployment", "kinema-server")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > found.shutdown_seconds
    (container,) = pod["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "https": found.port,
        "metrics": found.metrics_port,
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["command"][-1] == f"{mounts['config']}/server.yaml"
    assert str(found.certificate.parent) == mounts["tls"]


@pytest.mark.parametrize("component", ["operator", "server"])
def test_new_settings_make_a_new_pod(render: Render, component: str) -> None:
    def checksum(values: Values) -> str:
        deployment = named(render(values), "Deployment", f"kinema-{component}")
        found: str = deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return found

    other = {"operator": "server", "server": "operator"}[component]
    assert checksum({}) == checksum({component: {"replicas": 4}, other: {"settings": {"logLevel": "debug"}}})
    assert checksum({}) != checksum({component: {"settings": {"logLevel": "debug"}}})


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_keep_the_restricted_standard(render: Render, values: Values) -> None:
    pods = {item["metadata"]["name"]: item["spec"] for item in of_kind(render(values), "Pod")}
    for item in of_kind(render(values), "Deployment"):
        pods[item["metadata"]["name"]] = item["spec"]["template"]["spec"]
    assert set(pods) == {"kinema-operator", "kinema-server", "kinema-doctor"}
    for pod in pods.values():
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
    for component in ("operator", "server"):
        template = named(render(VALUES["placement"]), "Deployment", f"kinema-{component}")["spec"]["template"]
        wanted = VALUES["placement"][component]
        assert template["spec"]["affinity"] == wanted["affinity"]
        assert template["spec"]["topologySpreadConstraints"] == wanted["topologySpreadConstraints"]
        assert template["metadata"]["labels"]["team"] == template["metadata"]["annotations"]["owner"] == "video"
        assert template["spec"]["containers"][0]["resources"] == wanted["resources"]


def test_a_single_replica_does_not_stop_a_drain(render: Render) -> None:
    assert not of_kind(render(VALUES["single-replica"]), "PodDisruptionBudget")
    assert len(of_kind(render(VALUES["replicas"]), "PodDisruptionBudget")) == 2
    assert not of_kind(render(VALUES["placement"]), "PodDisruptionBudget"), "switched off by disruptionBudget"


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


@pytest.mark.parametrize("values", ["own-certificate", "cert-manager", "cert-manager-issuer"])
def test_a_certificate_that_others_make_is_only_read(render: Render, values: str) -> None:
    held = rights(render(VALUES[values]), "kinema-operator")
    assert {verb for _, resource, verb in held if resource == "secrets"} == {"get"}


def test_with_watched_namespaces_no_right_on_jobs_reaches_further(render: Render) -> None:
    objects = render(VALUES["watch-namespaces"])
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


def test_the_server_starts_pods_only_where_it_may_read_workspaces(render: Render) -> None:
    def on_pods(values: str) -> set[tuple[str, str]]:
        return {
            (scope, verb)
            for scope, resource, verb in rights(render(VALUES[values]), "kinema-server")
            if resource == "pods"
        }

    wanted = {"get", "list", "create", "delete"}
    assert on_pods("watch-namespaces") == {(space, verb) for space in ("team-a", "team-b") for verb in wanted}
    assert on_pods("fewest-rights") == {("team-a", "get"), ("team-a", "list")}


def test_every_user_reaches_the_server_through_the_api_server_unless_told_otherwise(render: Render) -> None:
    objects = render({})
    (rule,) = named(objects, "Role", "kinema-server-proxy")["rules"]
    service = named(objects, "Service", "kinema-server")
    (port,) = service["spec"]["ports"]
    assert rule["resourceNames"] == [f"https:{service['metadata']['name']}:{port['name']}"]
    assert not [item for item in render(VALUES["fewest-rights"]) if item["metadata"]["name"] == "kinema-server-proxy"]


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
    assert not [item for item in render(VALUES["crds-elsewhere"]) if item["kind"] == "CustomResourceDefinition"]
    dropped = [item for item in render(VALUES["crds-removed"]) if item["kind"] == "CustomResourceDefinition"]
    assert dropped
    assert not any("helm.sh/resource-policy" in item["metadata"].get("annotations", {}) for item in dropped)


def test_people_get_their_rights_through_the_built_in_roles(render: Render) -> None:
    def rules(values: str, target: str) -> set[tuple[str, str]]:
        wanted = f"rbac.authorization.k8s.io/aggregate-to-{target}"
        return {
            (resource, verb)
            for role in of_kind(render(VALUES[values]), "ClusterRole")
            if role["metadata"]["labels"].get(wanted) == "true"
            for rule in role["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    jobs, pools = "videotrainingjobs", "trainingpools"
    reads = {"get", "list", "watch"}
    writes = {"create", "update", "patch", "delete", "deletecollection"}
    assert {verb for resource, verb in rules("defaults", "view") if resource == jobs} == reads
    assert rules("defaults", "edit") == {(jobs, verb) for verb in writes}
    assert rules("defaults", "admin") == {(resource, verb) for resource in (jobs, pools) for verb in writes}
    assert not any(rules("roles-apart", target) for target in ("view", "edit", "admin"))


def test_labels_of_the_users_own_are_on_every_object_and_no_selector(render: Render) -> None:
    objects = render(VALUES["labels"])
    assert all(item["metadata"]["labels"]["cost-center"] == "42" for item in objects)
    for deployment in of_kind(objects, "Deployment"):
        assert "cost-center" not in deployment["spec"]["selector"]["matchLabels"]


def test_the_server_is_reached_through_an_ingress(render: Render) -> None:
    spec = named(render(VALUES["ingress"]), "Ingress", "kinema-server")["spec"]
    (rule,) = spec["rules"]
    assert (rule["host"], spec["ingressClassName"]) == ("kinema.example.com", "nginx")
    assert spec["tls"] == [{"secretName": "kinema-public", "hosts": ["kinema.example.com"]}]
    (path,) = rule["http"]["paths"]
    service = named(render({}), "Service", "kinema-server")["spec"]
    assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["ports"]}
    (anywhere,) = named(render(VALUES["ingress-any-host"]), "Ingress", "kinema-server")["spec"]["rules"]
    assert "host" not in anywhere


def test_the_server_is_reached_through_a_gateway_that_checks_its_certificate(render: Render) -> None:
    objects = render(VALUES["http-route"], namespace="mine")
    (rule,) = named(objects, "HTTPRoute", "kinema-server")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}, "streams are not cut"
    policy = named(objects, "BackendTLSPolicy", "kinema-server")["spec"]
    assert policy["validation"]["hostname"] in server_names(service="kinema-server", namespace="mine")
    assert policy["validation"]["caCertificateRefs"][0]["name"] == "kinema-ca"


def test_objects_of_the_users_own_may_be_templates(render: Render) -> None:
    extra = named(render(VALUES["extra-objects"], namespace="mine"), "ConfigMap", "kinema-extra")
    assert (extra["metadata"]["namespace"], extra["data"]) == ("mine", {"release": "kinema"})


def test_the_test_of_the_release_is_the_doctor(render: Render) -> None:
    objects = render(VALUES["images"])
    pod = named(objects, "Pod", "kinema-doctor")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["kinema", "doctor", "--no-rights"]
    operator = named(objects, "Deployment", "kinema-operator")["spec"]["template"]["spec"]
    assert container["image"] == operator["containers"][0]["image"]
    hooks = [item for item in objects if "helm.sh/hook" in item["metadata"].get("annotations", {})]
    assert hooks == [pod], "`helm test --logs` wants the log of a pod by the name of every hook"


def test_the_doctor_may_look_at_all_that_it_checks(render: Render) -> None:
    objects = render({}, namespace="mine")
    held = rights(objects, "kinema-doctor")
    assert held == {
        ("*", "customresourcedefinitions", "get"),
        ("*", "nodes", "list"),
        ("*", "trainingpools", "list"),
        ("mine", "leases", "get"),
    }
    (container,) = named(objects, "Pod", "kinema-doctor")["spec"]["containers"]
    assert {"name": "KINEMA_SYSTEM_NAMESPACE", "value": "mine"} in container["env"]


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
