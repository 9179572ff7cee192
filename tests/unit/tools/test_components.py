# SPDX-License-Identifier: Apache-2.0
"""Command lines and configuration of the components."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from kinema_cluster import components
from kinema_cluster.components import Plane, Ports
from kinema_cluster.paths import Layout

FULL = Plane(layout=Layout(Path("/state")), host="10.97.0.1", ports=Ports(), nodes_are_real=True)
FAKE = Plane(layout=Layout(Path("/state")), host="127.0.0.1", ports=Ports(1, 2, 3, 4, 5), nodes_are_real=False)
COMMANDS = [components.etcd, components.api_server, components.controller_manager, components.scheduler]


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_listens_or_talks_without_tls(command: Callable[[Plane], list[str]]) -> None:
    line = " ".join(command(FULL))
    assert "http://" not in line
    assert "/state/pki/server.crt" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_two_control_planes_share_no_port(command: Callable[[Plane], list[str]]) -> None:
    other = Plane(
        layout=Layout(Path("/other")), host="127.0.0.1", ports=Ports(11, 12, 13, 14, 15), nodes_are_real=False
    )
    assert not set(command(FAKE)[1:]) & {flag for flag in command(other) if "port" in flag or "url" in flag}


def test_the_api_server_authorizes_nodes_and_roles() -> None:
    flags = components.api_server(FULL)
    assert "--authorization-mode=Node,RBAC" in flags
    assert "--enable-admission-plugins=NodeRestriction" in flags
    assert "--advertise-address=10.97.0.1" in flags
    assert not [flag for flag in flags if flag.startswith("--endpoint-reconciler-type")]
    assert "--endpoint-reconciler-type=none" in components.api_server(FAKE)


def test_the_server_certificate_covers_every_name_of_the_api_server() -> None:
    server = next(identity for identity in components.identities("10.97.0.1") if identity.name == "server")
    assert {"10.97.0.1", "127.0.0.1", "10.96.0.1", "kubernetes.default.svc"} <= set(server.hosts)


def test_the_kubelet_trusts_nobody_it_does_not_know_and_keeps_images() -> None:
    config = components.kubelet_config(FULL, resolv_conf="/state/config/resolv.conf")
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}
    assert config["readOnlyPort"] == 0
    assert config["imageGCHighThresholdPercent"] == 100
    assert all(value.endswith("Mi") for value in config["evictionHard"].values())
    assert config["failCgroupV1"] is False


def test_containerd_keeps_to_its_own_folders() -> None:
    text = components.containerd_config(FULL, store="/cache/containerd", pause_image="kinema.local/pause:1")
    config = tomllib.loads(text)
    assert config["root"] == "/cache/containerd"
    assert config["state"] == "/state/containerd/state"
    assert config["grpc"]["address"] == "/state/containerd/containerd.sock"
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True
    assert cri["sandbox_image"] == "kinema.local/pause:1"
    assert cri["cni"]["conf_dir"] == "/state/config/cni"
    assert cri["containerd"]["runtimes"]["runc"]["options"]["Root"] == "/state/containerd/runc"


def test_pods_get_addresses_from_the_network_that_services_know() -> None:
    plugins = components.cni_config(FULL)["plugins"]
    assert [plugin["type"] for plugin in plugins] == ["ptp", "portmap", "firewall"]
    assert plugins[0]["ipam"]["ranges"] == [[{"subnet": components.POD_CIDR}]]
    assert plugins[0]["ipam"]["dataDir"].startswith("/state/")
    assert components.kube_proxy_config(FULL)["clusterCIDR"] == components.POD_CIDR


def test_kube_proxy_leaves_the_hosts_connection_tracking_alone() -> None:
    conntrack = components.kube_proxy_config(FULL)["conntrack"]
    assert set(conntrack.values()) == {0, "0s"}
