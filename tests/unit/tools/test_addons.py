# SPDX-License-Identifier: Apache-2.0
"""What runs on the cluster before Kinema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kinema_cluster import addons, build


def test_pods_do_not_ask_the_hosts_own_resolver() -> None:
    text = (
        "# c\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch example\nnameserver ::1\n"
    )
    assert addons.upstream_servers(text) == ["192.0.2.53"]


def test_outside_names_are_forwarded_or_denied() -> None:
    assert "forward . 192.0.2.53" in addons.corefile(["192.0.2.53"])
    assert "NXDOMAIN" in addons.corefile([])


def test_the_pods_of_the_cluster_hold_no_rights_they_do_not_need() -> None:
    deployment = next(item for item in addons.coredns([]) if item["kind"] == "Deployment")
    context = deployment["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert context["runAsNonRoot"] and context["capabilities"] == {"drop": ["ALL"]}


def test_the_init_container_passes_the_restricted_security_level() -> None:
    container = yaml.safe_load(addons.INIT_CONTAINER.replace("{{", "<").replace("}}", ">"))[0]
    context = container["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_volume_and_its_claim_are_bound_to_each_other() -> None:
    volume, claim = addons.static_volume(name="v", claim="c", namespace="n", path=Path("/data"))
    assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"] == ""
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]


def test_training_operators_manifests_are_its_own_with_our_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    base = build.TRAINING_OPERATOR.home() / "manifests"
    base.mkdir(parents=True)
    (base / "kustomization.yaml").write_text("resources: []\n")
    pki = tmp_path / "pki"
    addons.make_webhook_certificate(pki)
    addons.write_training_operator(tmp_path / "out", pki=pki)
    kustomization = json.loads((tmp_path / "out" / "kustomization.yaml").read_text())
    assert kustomization["resources"][0] == "base"
    assert kustomization["namespace"] == "kubeflow"
    patches = "".join(patch["patch"] for patch in kustomization["patches"])
    assert addons.image_names()["training-operator"] in patches
    assert "--kube-api-qps=200" in patches
    for name in kustomization["resources"]:
        assert (tmp_path / "out" / name).exists()


def test_the_fingerprint_changes_with_what_is_applied() -> None:
    assert addons.fingerprint([]) == addons.fingerprint([])
    assert addons.fingerprint([]) != addons.fingerprint(["192.0.2.53"])
