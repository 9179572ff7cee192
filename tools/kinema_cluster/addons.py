# SPDX-License-Identifier: Apache-2.0
"""What runs on the cluster before anything of Kinema's: CoreDNS, training-operator, a volume."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import shutil
from pathlib import Path
from typing import Any

from kinema_cluster.api import Api
from kinema_cluster.build import COREDNS, NODE, TRAINING_OPERATOR
from kinema_cluster.certificates import Identity, encoded, issue, make_traditional_authority
from kinema_cluster.components import DNS_SERVICE, DOMAIN
from kinema_cluster.oci import write_scratch_image

NAMESPACE = "kubeflow"
"""Of training-operator, as in its own manifests."""
WEBHOOK_SECRET = "training-operator-webhook-cert"
WEBHOOKS = "validator.training-operator.kubeflow.org"
SERVICE = f"training-operator.{NAMESPACE}.svc"
# How fast training-operator may work, the same as a Pod and as a process.
WORKERS = ["--controller-threads=4", "--kube-api-qps=200", "--kube-api-burst=300"]
INIT_TRIES = 600
"""Seconds a worker's init container waits for the name of its master."""
INIT_CONTAINER = """\
- name: init-pytorch
  image: {{.InitContainerImage}}
  imagePullPolicy: IfNotPresent
  command: ["/waitname", "{{.MasterAddr}}", "{{.MaxTries}}"]
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
    runAsNonRoot: true
    seccompProfile: {type: RuntimeDefault}
"""
PROTOCOLS = ("UDP", "TCP")
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def image_names() -> dict[str, str]:
    """The cluster's own images; a tag is the key of the binary inside."""
    sources = {"pause": NODE, "waitname": NODE, "coredns": COREDNS, "training-operator": TRAINING_OPERATOR}
    return {name: f"kinema.local/{name}:{tool.home().name.removeprefix(name + '-')}" for name, tool in sources.items()}


def write_image(name: str, path: Path) -> None:
    """One of the cluster's own images as an OCI archive."""
    tool = {"coredns": COREDNS, "training-operator": TRAINING_OPERATOR}.get(name, NODE)
    inside = "/manager" if name == "training-operator" else f"/{name}"
    write_scratch_image(path, name=image_names()[name], files={inside: tool.binary(name)}, entrypoint=[inside])


def upstream_servers(resolv_conf: str) -> list[str]:
    """The name servers that pods can reach: those of the host, without its own loopback resolvers."""
    found = []
    for line in resolv_conf.splitlines():
        fields = line.split()
        if len(fields) > 1 and fields[0] == "nameserver":
            address = ipaddress.ip_address(fields[1].partition("%")[0])
            if not address.is_loopback and not address.is_link_local:
                found.append(str(address))
    return found


def corefile(upstream: list[str]) -> str:
    """Names of the cluster are never cached: a headless name must resolve as soon as its pod is there."""
    nowhere = "template ANY ANY {\n        rcode NXDOMAIN\n    }"
    outside = f"forward . {' '.join(upstream)}\n    cache 30" if upstream else nowhere
    return f"""\
{DOMAIN}:1053 in-addr.arpa:1053 ip6.arpa:1053 {{
    errors
    ready :8181
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        pods insecure
        ttl 1
    }}
}}
.:1053 {{
    errors
    {outside}
}}
"""


def coredns(upstream: list[str]) -> list[dict[str, Any]]:
    """CoreDNS as a Deployment behind the cluster's DNS address."""
    meta = {"name": "coredns", "namespace": "kube-system"}
    labels = {"k8s-app": "kube-dns"}
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    container = {
        "name": "coredns",
        "image": image_names()["coredns"],
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"containerPort": 1053, "protocol": kind, "name": kind.lower()} for kind in PROTOCOLS],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    role = {"name": "kinema:coredns"}
    ports = [{"name": f"dns-{kind.lower()}", "port": 53, "targetPort": 1053, "protocol": kind} for kind in PROTOCOLS]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": role, "rules": rules},
        cluster_role_binding(role["name"], role=role["name"], account=meta),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": corefile(upstream)}},
        deployment(meta, labels, pod),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
            "spec": {"clusterIP": DNS_SERVICE, "selector": labels, "ports": ports},
        },
    ]


def deployment(meta: dict[str, str], labels: dict[str, str], pod: dict[str, Any]) -> dict[str, Any]:
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}


def cluster_role_binding(name: str, *, role: str, account: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", **account}],
    }


def make_webhook_certificate(pki: Path, *, hosts: tuple[str, ...] = ()) -> None:
    """Certificates of training-operator's webhook, made ahead so that its Pod need not wait for its own Secret."""
    # The name and the form of the key that training-operator's own rotation takes for valid; others it replaces.
    make_traditional_authority(pki, "webhook-ca", host="training-operator-ca")
    issue(pki, Identity(name="webhook", common_name=SERVICE, hosts=(SERVICE, *hosts)), authority="webhook-ca")


def webhook_secret(pki: Path) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": WEBHOOK_SECRET, "namespace": NAMESPACE},
        "data": {
            "ca.crt": encoded(pki / "webhook-ca.crt"),
            "ca.key": encoded(pki / "webhook-ca.key"),
            "tls.crt": encoded(pki / "webhook.crt"),
            "tls.key": encoded(pki / "webhook.key"),
        },
    }


def fingerprint(upstream: list[str]) -> str:
    """Changes with all that decides what is applied to a full cluster."""
    parts = [coredns(upstream), image_names(), INIT_CONTAINER, _deployment_patch()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def namespace() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


def write_training_operator(folder: Path, *, pki: Path) -> None:
    """A kustomization of training-operator's own manifests, changed to run here; apply it with `kubectl apply -k`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TRAINING_OPERATOR.home() / "manifests", folder / "base")
    extra = {"namespace.json": namespace(), "secret.json": webhook_secret(pki), "init.json": init_container_config()}
    for name, value in extra.items():
        (folder / name).write_text(json.dumps(value))
    authority = encoded(pki / "webhook-ca.crt")
    webhook_patch = [
        {"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": authority} for number in range(5)
    ]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": ["base", *extra],
        "patches": [
            {"target": {"kind": "Deployment"}, "patch": json.dumps(_deployment_patch())},
            {"target": {"kind": "ValidatingWebhookConfiguration"}, "patch": json.dumps(webhook_patch)},
        ],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))


def init_container_config() -> dict[str, Any]:
    meta = {"name": "training-operator-config", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"initContainer.yaml": INIT_CONTAINER}}


def init_container_flags(template: str) -> list[str]:
    return [
        f"--pytorch-init-container-image={image_names()['waitname']}",
        f"--pytorch-init-container-max-tries={INIT_TRIES}",
        f"--pytorch-init-container-template-file={template}",
    ]


def _deployment_patch() -> list[dict[str, Any]]:
    container = "/spec/template/spec/containers/0"
    replaced = {
        "image": image_names()["training-operator"],
        "imagePullPolicy": "Never",
        "args": [*WORKERS, *init_container_flags("/etc/config/initContainer.yaml")],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": RESTRICTED,
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8081}, "periodSeconds": 1},
    }
    changes = [{"op": "add", "path": f"{container}/{name}", "value": value} for name, value in replaced.items()]
    mount = {"name": "config", "mountPath": "/etc/config", "readOnly": True}
    volume = {"name": "config", "configMap": {"name": "training-operator-config"}}
    return [
        *changes,
        {"op": "add", "path": f"{container}/volumeMounts/-", "value": mount},
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": volume},
    ]


def static_volume(*, name: str, claim: str, namespace: str, path: Path) -> list[dict[str, Any]]:
    """A folder of this machine as a ReadWriteMany volume, and the claim that is bound to it."""
    shared = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        **shared,
        "capacity": {"storage": "1Ti"},
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(path), "type": "Directory"},
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim, "namespace": namespace},
    }
    request = {**shared, "volumeName": name, "resources": {"requests": {"storage": "1Ti"}}}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": namespace},
            "spec": request,
        },
    ]


def webhook_trouble(api: Api) -> str:
    """Why the API server cannot have a PyTorchJob validated; empty when it can."""
    pods = {"spec": {"containers": [{"name": "pytorch", "image": "none"}]}}
    probe = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "kinema-webhook-probe", "namespace": "default"},
        "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": pods}}},
    }
    try:
        made = api.request("POST", "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs?dryRun=All", probe)
    except OSError as error:
        return str(error)
    return "" if made else "PyTorchJob is not a known kind"
