# SPDX-License-Identifier: Apache-2.0
"""training-operator as a process of the host, for control planes that run no pods."""

from __future__ import annotations

import json
import shlex
import shutil
import urllib.error
import urllib.request
from typing import Any

from kinema_cluster import addons
from kinema_cluster.api import APPLY, condition
from kinema_cluster.build import TRAINING_OPERATOR
from kinema_cluster.certificates import Identity, encoded, issue
from kinema_cluster.supervisor import Supervisor

HOST = "127.0.0.1"
ACCOUNT = f"system:serviceaccount:{addons.NAMESPACE}:training-operator"
CERTIFICATES = "/tmp/k8s-webhook-server"
"""Where training-operator looks for its certificates; the path is fixed in its code."""


def start(supervisor: Supervisor, *, webhook_port: int, probe_port: int) -> None:
    """Apply its CRD, rights and webhook, and start it."""
    pki, config = supervisor.layout.pki, supervisor.layout.config
    addons.make_webhook_certificate(pki, hosts=(HOST,))
    # Its rights are those of its Pod: the API server knows it by the name of its service account.
    issue(pki, Identity(name="training-operator", common_name=ACCOUNT, organizations=("system:serviceaccounts",)))
    supervisor.write_kubeconfig(config / "training-operator.kubeconfig", "training-operator")
    supervisor.write_config("initContainer.yaml", addons.INIT_CONTAINER)
    certificates = config / "webhook" / "serving-certs"
    certificates.mkdir(parents=True, exist_ok=True)
    for name, source in {"tls.crt": "webhook.crt", "tls.key": "webhook.key", "ca.crt": "webhook-ca.crt"}.items():
        shutil.copyfile(pki / source, certificates / name)
    _apply(supervisor, webhook_port)
    supervisor.ensure("training-operator", command(supervisor, webhook_port=webhook_port, probe_port=probe_port))


def command(supervisor: Supervisor, *, webhook_port: int, probe_port: int) -> list[str]:
    """In a mount namespace of its own, so that several can each have their certificates under the one fixed path."""
    config = supervisor.layout.config
    arguments = [
        f"--kubeconfig={config}/training-operator.kubeconfig",
        "--enable-scheme=pytorchjob",
        "--metrics-bind-address=0",
        f"--health-probe-bind-address={HOST}:{probe_port}",
        f"--webhook-server-port={webhook_port}",
        *addons.WORKERS,
        *addons.init_container_flags(f"{config}/initContainer.yaml"),
    ]
    script = (
        f"mkdir -p {CERTIFICATES} && mount --bind {shlex.quote(str(config / 'webhook'))} {CERTIFICATES} && "
        f"exec {shlex.quote(str(TRAINING_OPERATOR.binary('training-operator')))} {shlex.join(arguments)}"
    )
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", script]


def webhook(*, port: int, authority: str) -> dict[str, Any]:
    rule = {"apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "resources": ["pytorchjobs"]}
    entry = {
        "name": "validator.pytorchjob.training-operator.kubeflow.org",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": {"url": f"https://{HOST}:{port}/validate-kubeflow-org-v1-pytorchjob", "caBundle": authority},
        "rules": [{**rule, "operations": ["CREATE", "UPDATE"]}],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": addons.WEBHOOKS},
        "webhooks": [entry],
    }


def ready(probe_port: int) -> bool:
    """Whether it serves its webhook."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{HOST}:{probe_port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _apply(supervisor: Supervisor, webhook_port: int) -> None:
    api, pki = supervisor.api(), supervisor.layout.pki
    supervisor.wait(
        "the default namespaces were not there",
        lambda: api.get("/api/v1/namespaces/default") is not None,
        seconds=30,
        needs=["kube-apiserver"],
    )
    account = {"name": "training-operator", "namespace": addons.NAMESPACE}
    manifests = TRAINING_OPERATOR.home() / "manifests"
    objects = [
        addons.namespace(),
        addons.webhook_secret(pki),
        addons.cluster_role_binding("training-operator", role="training-operator", account=account),
        webhook(port=webhook_port, authority=encoded(pki / "webhook-ca.crt")),
    ]
    crd = "kubeflow.org_pytorchjobs.yaml"
    files = ["-f", str(manifests / "crds" / crd), "-f", str(manifests / "rbac" / "role.yaml")]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    api.kubectl("apply", *APPLY, *files, "-f", "-", text=listed)
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/pytorchjobs.kubeflow.org"
    supervisor.wait(
        "the CRD of PyTorchJob was not established",
        lambda: condition(api.get(path), "Established"),
        seconds=30,
        needs=["kube-apiserver"],
    )
