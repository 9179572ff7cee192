# SPDX-License-Identifier: Apache-2.0
"""Certificates as Kubernetes and training-operator want them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kinema_cluster import certificates
from kinema_cluster.certificates import Identity, alternative_name
from kinema_cluster.errors import ClusterError


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    certificates.make_authority(tmp_path / "pki")
    return tmp_path / "pki"


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_client_is_known_by_name_and_groups(pki: Path) -> None:
    node = Identity(name="kubelet", common_name="system:node:kinema", organizations=("system:nodes",))
    certificates.issue(pki, node)
    found = read(pki / "kubelet.crt")
    found.verify_directly_issued_by(read(pki / "ca.crt"))
    assert found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:kinema"
    assert found.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert (pki / "kubelet.key").stat().st_mode & 0o077 == 0


def test_a_server_is_known_by_its_hosts(pki: Path) -> None:
    certificates.issue(pki, Identity(name="server", common_name="s", hosts=("10.97.0.1", "kubernetes.default.svc")))
    names = read(pki / "server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["kubernetes.default.svc"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.97.0.1"]


def test_what_is_there_stays(pki: Path) -> None:
    identity = Identity(name="admin", common_name="a")
    certificates.issue(pki, identity)
    first = (pki / "admin.crt").read_bytes()
    certificates.issue(pki, identity)
    certificates.make_authority(pki)
    assert (pki / "admin.crt").read_bytes() == first


def test_the_webhooks_authority_is_one_that_training_operator_does_not_replace(pki: Path) -> None:
    certificates.make_traditional_authority(pki, "webhook-ca", host="training-operator-ca")
    key = (pki / "webhook-ca.key").read_bytes()
    assert key.startswith(b"-----BEGIN RSA PRIVATE KEY-----")
    assert isinstance(load_pem_private_key(key, None), rsa.RSAPrivateKey)
    found = read(pki / "webhook-ca.crt")
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["training-operator-ca"]
    assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_kubeconfig_holds_all_it_needs_and_only_its_owner_reads_it(pki: Path, tmp_path: Path) -> None:
    certificates.issue(pki, Identity(name="admin", common_name="a"))
    path = tmp_path / "config"
    certificates.write_kubeconfig(path, server="https://10.97.0.1:6443", pki=pki, identity="admin")
    found = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    data = found["clusters"][0]["cluster"]["certificate-authority-data"]
    assert base64.b64decode(data) == (pki / "ca.crt").read_bytes()


@pytest.mark.parametrize(("host", "name"), [("::1", "IP:::1"), ("1.2.3.4", "IP:1.2.3.4"), ("a.b", "DNS:a.b")])
def test_alternative_names(host: str, name: str) -> None:
    assert alternative_name(host) == name


def test_openssl_speaks_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="openssl"):
        certificates.issue(tmp_path, Identity(name="x", common_name="x"), authority="nowhere")
