# SPDX-License-Identifier: Apache-2.0
"""Network policies let through what Kinema needs: walked as a plugin would, connection by connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kinema_api.names import LABEL_JOB, LABEL_STAGE, MANAGED_BY, MANAGER, METRICS_PORT
from kinema_api.reading import READER_PORT

from tests.chart.conftest import VALUES, Object, Render, named, of_kind

HOME = "kinema-system"
STAGE = {MANAGED_BY: MANAGER, LABEL_JOB: "wan", LABEL_STAGE: "train"}
API_SERVER, ELSEWHERE, STORE = "10.0.0.1", "203.0.113.9", "192.0.2.7"
Place = tuple[str, Mapping[str, str]]
"""A pod: its namespace and labels. Or an address, with no labels."""


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        (expression["key"] in labels) == (expression["operator"] == "Exists")
        for expression in selector.get("matchExpressions", [])
    )


def is_peer(peer: Object, place: Place, home: str) -> bool:
    where, labels = place
    if "ipBlock" in peer:
        # Only as far as the examples go: a whole /32, /24 or /16.
        address, length = peer["ipBlock"]["cidr"].split("/")
        octets = int(length) // 8
        return bool(where.split(".")[:octets] == address.split(".")[:octets])
    if not labels:
        return False
    namespaces = peer.get("namespaceSelector")
    if namespaces is None:
        return where == home and selects(peer["podSelector"], labels)
    return selects(namespaces, {"kubernetes.io/metadata.name": where}) and selects(peer.get("podSelector", {}), labels)


def passes(objects: list[Object], direction: str, pod: Place, other: Place, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies that select the pod let the connection through."""
    home, labels = pod
    policies = [
        item["spec"]
        for item in of_kind(objects, "NetworkPolicy")
        if item["metadata"]["namespace"] == home and selects(item["spec"]["podSelector"], labels)
    ]
    if not any(direction in policy["policyTypes"] for policy in policies):
        return True
    key = {"Ingress": "from", "Egress": "to"}[direction]
    return any(
        ("ports" not in rule or {"port": port, "protocol": protocol} in rule["ports"])
        and (key not in rule or any(is_peer(peer, other, home) for peer in rule[key]))
        for policy in policies
        for rule in policy[direction.lower()]
    )


def pod_of(objects: list[Object], component: str) -> Place:
    labels = named(objects, "Deployment", f"kinema-{component}")["spec"]["template"]["metadata"]["labels"]
    return HOME, labels


@pytest.fixture
def closed(render: Render) -> list[Object]:
    return render(VALUES["network-policy"])


def connects(objects: list[Object], source: Place, target: Place, port: int) -> bool:
    """Both ends must agree."""
    return passes(objects, "Egress", source, target, port) and passes(objects, "Ingress", target, source, port)


def test_without_the_switch_there_is_none(render: Render) -> None:
    assert not of_kind(render({}), "NetworkPolicy")


def test_a_stage_posts_its_progress(closed: list[Object]) -> None:
    stage, server = ("team-a", STAGE), pod_of(closed, "server")
    assert connects(closed, stage, server, 8443)
    assert not connects(closed, stage, server, 9090)
    assert not connects(closed, stage, pod_of(closed, "operator"), 9090)


def test_the_server_asks_the_pod_that_reads_a_workspace(closed: list[Object]) -> None:
    server, reader = pod_of(closed, "server"), ("team-a", STAGE)
    assert connects(closed, server, reader, READER_PORT)
    assert not connects(closed, pod_of(closed, "operator"), reader, READER_PORT)
    assert not connects(closed, ("team-a", {"app": "notebook"}), reader, READER_PORT)


def test_the_doctor_reaches_the_server(closed: list[Object]) -> None:
    doctor = named(closed, "Pod", "kinema-doctor")["metadata"]["labels"]
    assert connects(closed, (HOME, doctor), pod_of(closed, "server"), 8443)


def test_a_gang_meets_on_any_port_and_nobody_else_joins(closed: list[Object]) -> None:
    stage, stranger = ("team-a", STAGE), ("team-a", {"app": "notebook"})
    assert connects(closed, stage, ("team-a", {**STAGE, LABEL_STAGE: "sample"}), 29500)
    assert not connects(closed, stranger, stage, 29500)
    assert not connects(closed, ("team-b", STAGE), stage, 29500)


def test_a_stage_reaches_what_the_administrator_lists(closed: list[Object]) -> None:
    stage: Place = ("team-a", STAGE)
    assert passes(closed, "Egress", stage, (STORE, {}), 443)
    assert not passes(closed, "Egress", stage, (ELSEWHERE, {}), 443)
    assert passes(closed, "Egress", stage, ("kube-system", {"k8s-app": "kube-dns"}), 53, "UDP")


@pytest.mark.parametrize("component", ["operator", "server"])
def test_the_control_plane_reaches_names_and_the_api_server_alone(closed: list[Object], component: str) -> None:
    pod = pod_of(closed, component)
    assert passes(closed, "Egress", pod, (API_SERVER, {}), 6443)
    assert passes(closed, "Egress", pod, ("kube-system", {"k8s-app": "kube-dns"}), 53, "UDP")
    assert not passes(closed, "Egress", pod, (ELSEWHERE, {}), 443)
    assert not passes(closed, "Egress", pod, ("default", {"app": "x"}), 80)


def test_prometheus_scrapes_and_others_do_not(closed: list[Object]) -> None:
    prometheus, other = ("monitoring", {"app": "prometheus"}), ("default", {"app": "prometheus"})
    targets: list[tuple[Place, int]] = [
        (pod_of(closed, "operator"), 9090),
        (pod_of(closed, "server"), 9090),
        (("team-b", STAGE), METRICS_PORT),
    ]
    for target, port in targets:
        assert passes(closed, "Ingress", target, prometheus, port)
        assert not passes(closed, "Ingress", target, other, port)


def test_only_clients_ask_the_server(closed: list[Object]) -> None:
    server = pod_of(closed, "server")
    assert passes(closed, "Ingress", server, ("ingress-nginx", {"app": "ingress"}), 8443)
    assert passes(closed, "Ingress", server, ("10.1.2.3", {}), 8443), "a pod on the host's network"
    assert passes(closed, "Ingress", server, (API_SERVER, {}), 8443), "the API server's proxy"
    assert not passes(closed, "Ingress", server, ("default", {"app": "x"}), 8443)


def test_with_nobody_listed_everybody_may_ask(render: Render) -> None:
    objects: list[Object] = render(VALUES["network-policy-open"])
    server = pod_of(objects, "server")
    anybody: Any = ("default", {"app": "x"})
    assert passes(objects, "Ingress", server, anybody, 8443)
    assert passes(objects, "Ingress", server, anybody, 9090)
    assert passes(objects, "Egress", server, (API_SERVER, {}), 443)
    assert not passes(objects, "Egress", server, anybody, 80)
    assert not passes(objects, "Egress", server, anybody, READER_PORT), "readers alone listen there for the server"
    assert not passes(objects, "Ingress", pod_of(objects, "operator"), anybody, 8443)
