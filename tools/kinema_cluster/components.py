# SPDX-License-Identifier: Apache-2.0
"""The command line and configuration of each component, as pure functions of where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kinema_cluster.build import KUBERNETES
from kinema_cluster.certificates import Identity
from kinema_cluster.paths import Layout

SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
POD_CIDR = "10.244.0.0/16"
NODE = "kinema"
DOMAIN = "cluster.local"
CONTROLLERS: list[str] = []
"""Further flags of kube-controller-manager."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the parts of a control plane listen."""

    etcd: int = 2379
    etcd_peer: int = 2380
    api: int = 6443
    controllers: int = 10257
    scheduler: int = 10259


@dataclass(frozen=True, slots=True)
class Plane:
    """One control plane: its files, its address, its ports."""

    layout: Layout
    host: str
    ports: Ports
    nodes_are_real: bool

    @property
    def server(self) -> str:
        return f"https://{self.host}:{self.ports.api}"

    def pki(self, name: str) -> str:
        return str(self.layout.pki / name)

    def config(self, name: str) -> str:
        return str(self.layout.config / name)


def identities(host: str) -> list[Identity]:
    """Every certificate of a control plane, but the node's own."""
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
    hosts = tuple(dict.fromkeys([host, "127.0.0.1", "localhost", *service, API_SERVICE]))
    return [
        Identity(name="server", common_name="kinema-control-plane", hosts=hosts),
        Identity(name="etcd-client", common_name="kube-apiserver"),
        Identity(name="kubelet-client", common_name="kube-apiserver", organizations=("system:masters",)),
        Identity(name="admin", common_name="kinema-admin", organizations=("system:masters",)),
        Identity(name="kube-controller-manager", common_name="system:kube-controller-manager"),
        Identity(name="kube-scheduler", common_name="system:kube-scheduler"),
    ]


def node_identities(host: str) -> list[Identity]:
    return [
        Identity(name="kubelet", common_name=f"system:node:{NODE}", organizations=("system:nodes",)),
        Identity(name="kubelet-server", common_name=f"system:node:{NODE}", hosts=(NODE, host)),
        Identity(name="kube-proxy", common_name="system:kube-proxy"),
    ]


def etcd(plane: Plane) -> list[str]:
    client = f"https://{plane.host}:{plane.ports.etcd}"
    peer = f"https://{plane.host}:{plane.ports.etcd_peer}"
    return [
        "etcd",
        "--name=kinema",
        f"--data-dir={plane.layout.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=kinema={peer}",
        *_etcd_tls(plane, prefix=""),
        *_etcd_tls(plane, prefix="peer-"),
        # The data lives as long as the cluster: what a power loss breaks, the next `up` clears.
        "--unsafe-no-fsync",
        "--auto-compaction-retention=10m",
        "--logger=zap",
        "--log-outputs=stderr",
        "--log-level=warn",
    ]


def _etcd_tls(plane: Plane, *, prefix: str) -> list[str]:
    return [
        f"--{prefix}cert-file={plane.pki('server.crt')}",
        f"--{prefix}key-file={plane.pki('server.key')}",
        f"--{prefix}client-cert-auth",
        f"--{prefix}trusted-ca-file={plane.pki('ca.crt')}",
    ]


def api_server(plane: Plane) -> list[str]:
    flags = {
        "bind-address": plane.host,
        "advertise-address": plane.host,
        "secure-port": plane.ports.api,
        "tls-cert-file": plane.pki("server.crt"),
        "tls-private-key-file": plane.pki("server.key"),
        "client-ca-file": plane.pki("ca.crt"),
        "etcd-servers": f"https://{plane.host}:{plane.ports.etcd}",
        "etcd-cafile": plane.pki("ca.crt"),
        "etcd-certfile": plane.pki("etcd-client.crt"),
        "etcd-keyfile": plane.pki("etcd-client.key"),
        "service-cluster-ip-range": SERVICE_CIDR,
        "service-account-issuer": f"https://kubernetes.default.svc.{DOMAIN}",
        "service-account-key-file": plane.pki("service-accounts.pub"),
        "service-account-signing-key-file": plane.pki("service-accounts.key"),
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "kubelet-preferred-address-types": "InternalIP",
        "kubelet-certificate-authority": plane.pki("ca.crt"),
        "kubelet-client-certificate": plane.pki("kubelet-client.crt"),
        "kubelet-client-key": plane.pki("kubelet-client.key"),
        "shutdown-delay-duration": "0s",
    }
    if not plane.nodes_are_real:
        # A loopback address may not stand in Endpoints.
        flags["endpoint-reconciler-type"] = "none"
    return [str(KUBERNETES.binary("kube-apiserver")), *_flags(flags)]


def controller_manager(plane: Plane) -> list[str]:
    flags = {
        **_leaderless(plane, "kube-controller-manager", plane.ports.controllers),
        "use-service-account-credentials": "true",
        "service-account-private-key-file": plane.pki("service-accounts.key"),
        "root-ca-file": plane.pki("ca.crt"),
        "cluster-signing-cert-file": plane.pki("ca.crt"),
        "cluster-signing-key-file": plane.pki("ca.key"),
        "cluster-cidr": POD_CIDR,
        # By default it makes a folder in /usr/libexec.
        "flex-volume-plugin-dir": plane.layout.root / "volume-plugins",
        "service-cluster-ip-range": SERVICE_CIDR,
    }
    return [str(KUBERNETES.binary("kube-controller-manager")), *_flags(flags), *CONTROLLERS]


def scheduler(plane: Plane) -> list[str]:
    flags = _leaderless(plane, "kube-scheduler", plane.ports.scheduler)
    return [str(KUBERNETES.binary("kube-scheduler")), *_flags(flags)]


def _leaderless(plane: Plane, name: str, port: int) -> dict[str, object]:
    kubeconfig = plane.config(f"{name}.kubeconfig")
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "leader-elect": "false",
        "bind-address": plane.host,
        "secure-port": port,
        "tls-cert-file": plane.pki("server.crt"),
        "tls-private-key-file": plane.pki("server.key"),
    }


def kubelet(plane: Plane) -> list[str]:
    flags = {
        "config": plane.config("kubelet.json"),
        "kubeconfig": plane.config("kubelet.kubeconfig"),
        "root-dir": plane.layout.kubelet,
        "cert-dir": plane.layout.kubelet / "pki",
        "hostname-override": NODE,
        "node-ip": plane.host,
    }
    return [str(KUBERNETES.binary("kubelet")), *_flags(flags)]


def kubelet_config(plane: Plane, *, resolv_conf: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": plane.host,
        "port": 10250,
        "readOnlyPort": 0,
        "healthzBindAddress": plane.host,
        "healthzPort": 10248,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": plane.pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": plane.pki("kubelet-server.crt"),
        "tlsPrivateKeyFile": plane.pki("kubelet-server.key"),
        "clusterDomain": DOMAIN,
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": resolv_conf,
        "containerRuntimeEndpoint": f"unix://{plane.layout.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "podLogsDir": str(plane.layout.pod_logs),
        "volumePluginDir": str(plane.layout.kubelet / "volume-plugins"),
        # Loaded images cannot be pulled again, and some machines report a disk far larger than what is free:
        # so no image is collected, and eviction goes by bytes.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "imageMaximumGCAge": "0s",
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "500Mi",
            "imagefs.available": "500Mi",
        },
        "maxPods": 200,
        "registerNode": True,
    }


def kube_proxy(plane: Plane) -> list[str]:
    return [str(KUBERNETES.binary("kube-proxy")), f"--config={plane.config('kube-proxy.json')}"]


def kube_proxy_config(plane: Plane) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": NODE,
        "clusterCIDR": POD_CIDR,
        "clientConnection": {"kubeconfig": plane.config("kube-proxy.kubeconfig")},
        "bindAddress": plane.host,
        "healthzBindAddress": f"{plane.host}:10256",
        "metricsBindAddress": f"{plane.host}:10249",
        "oomScoreAdj": 0,
        "iptables": {"localhostNodePorts": False},
        # Zero leaves the sysctls alone: they are read-only on some machines, and the user's on all others.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def containerd(plane: Plane) -> list[str]:
    return ["containerd", f"--config={plane.config('containerd.toml')}"]


def containerd_config(plane: Plane, *, store: str, pause_image: str) -> str:
    """Containerd 1.6 with folders and a socket of its own; `store` is in the cache and survives the cluster."""
    layout = plane.layout
    return f"""\
version = 2
root = "{store}"
state = "{layout.containerd}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{layout.containerd}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  # Without CAP_SYS_RESOURCE nothing may lower its oom_score_adj, and every sandbox would fail.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{layout.config}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
    Root = "{layout.containerd}/runc"
"""


def cni_config(plane: Plane) -> dict[str, Any]:
    """A veth pair and a route a pod: no bridge, so that all traffic passes the host's iptables."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_CIDR}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(plane.layout.containerd / "cni-addresses"),
    }
    return {
        "cniVersion": "0.4.0",
        "name": "kinema",
        "plugins": [
            {"type": "ptp", "ipMasq": True, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
        ],
    }


def _flags(flags: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]
