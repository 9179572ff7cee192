# SPDX-License-Identifier: Apache-2.0
"""The server's certificate: made and rotated by the operator, unless the user brings one.

The Secret holds `tls.crt` and `tls.key`, which the server mounts; `ca.crt`, which goes into every pod that posts; and
`ca.key`, which signs the next certificate and which nothing mounts. The CA outlives certificates, so that pods that
run for months go on trusting the server.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kinema_api import names
from kinema_kube import Kube
from kinema_kube.errors import AlreadyExistsError, ConflictError
from kinema_kube.resources import SECRETS

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=90)
ROTATE_AFTER = 2 / 3
"""Share of a certificate's life after which it is replaced."""

TLS_CRT, TLS_KEY, CA_CRT, CA_KEY = "tls.crt", "tls.key", "ca.crt", "ca.key"

_SKEW = timedelta(minutes=5)
"""Clocks of nodes may lag by this much."""
_ATTEMPTS = 3


class CertificateSecretError(Exception):
    """The Secret holds nothing that a pod could trust."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes

    def loaded(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Both, parsed.

        Raises:
            ValueError: one is broken, or the key is not the certificate's.
        """
        certificate = x509.load_pem_x509_certificate(self.certificate)
        key = serialization.load_pem_private_key(self.key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("the key is not the certificate's")
        return certificate, key


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the Secret."""

    data: Mapping[str, str] | None
    """What to write, in base64; None leaves the Secret as it is."""
    ca: str
    """The PEM certificates that pods trust."""


def server_names(*, service: str, namespace: str) -> tuple[str, ...]:
    """The names under which pods reach a Service."""
    return (service, f"{service}.{namespace}", f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local")


def make_ca(*, now: datetime) -> Pair:
    """A certificate authority that signs servers and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Kinema CA")])
    builder = (
        _builder(name, name, key.public_key(), now=now, lifetime=CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _signed(builder, key=key, signer=key)


def make_leaf(ca: Pair, *, dns_names: Sequence[str], now: datetime) -> Pair:
    """A server's certificate.

    Raises:
        ValueError: the CA is broken.
    """
    ca_certificate, ca_key = ca.loaded()
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name is limited to 64 characters; clients look at the alternative names only.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Kinema server")])
    builder = (
        _builder(subject, ca_certificate.subject, key.public_key(), now=now, lifetime=LEAF_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    return _signed(builder, key=key, signer=ca_key)


def needs_rotation(certificate: bytes, *, now: datetime) -> bool:
    """Whether two thirds of a certificate's life are over, or it is not valid yet.

    Raises:
        ValueError: it is no certificate.
    """
    parsed = x509.load_pem_x509_certificate(certificate)
    begin, end = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    return not begin <= now < begin + ROTATE_AFTER * (end - begin)


def plan_secret(
    secret: Mapping[str, Any] | None, *, dns_names: Sequence[str], now: datetime, brought: bool = False
) -> Plan:
    """What to write into the Secret, and what pods trust after that.

    Args:
        secret: as it is; None when there is none.
        dns_names: the server's names.
        now: the present.
        brought: the user promised to bring the Secret, so that it is never written, even when there is none.

    Raises:
        CertificateSecretError: the Secret is the user's, and is missing or names no authority.
    """
    present = _decoded(secret)
    if secret is None and brought:
        raise CertificateSecretError(f"it does not exist: create it with {TLS_CRT}, {TLS_KEY} and {CA_CRT}")
    if secret is not None and (brought or not is_ours(secret)):
        return Plan(data=None, ca=_brought_authority(present))
    ca = Pair(certificate=_first(present.get(CA_CRT, b"")), key=present.get(CA_KEY, b""))
    bundle = present.get(CA_CRT, b"")
    renewed = not _usable(ca, now=now)
    if renewed:
        previous = ca.certificate if _is_certificate(ca.certificate) else b""
        ca = make_ca(now=now)
        # Pods that run trust the previous authority only; those that start now trust both.
        bundle = ca.certificate + previous
    leaf = Pair(certificate=present.get(TLS_CRT, b""), key=present.get(TLS_KEY, b""))
    if not renewed and _usable(leaf, now=now) and _serves(leaf, ca=ca, dns_names=dns_names):
        return Plan(data=None, ca=bundle.decode())
    leaf = make_leaf(ca, dns_names=dns_names, now=now)
    data = {TLS_CRT: leaf.certificate, TLS_KEY: leaf.key, CA_CRT: bundle, CA_KEY: ca.key}
    return Plan(data={key: base64.b64encode(value).decode() for key, value in data.items()}, ca=bundle.decode())


def is_ours(secret: Mapping[str, Any]) -> bool:
    """Whether the operator made a Secret."""
    return (secret["metadata"].get("labels") or {}).get(names.MANAGED_BY) == names.MANAGER


def new_secret(*, name: str, namespace: str, data: Mapping[str, str]) -> dict[str, Any]:
    """The Secret, to create."""
    return {
        "apiVersion": SECRETS.api_version,
        "kind": SECRETS.kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {names.MANAGED_BY: names.MANAGER}},
        "type": "kubernetes.io/tls",
        "data": dict(data),
    }


async def ensure_certificate(
    kube: Kube,
    *,
    secret: str,
    namespace: str,
    dns_names: Sequence[str],
    now: datetime | None = None,
    brought: bool = False,
) -> str:
    """Make or rotate the certificate where that is due and ours to do; what pods are to trust, as PEM.

    Raises:
        CertificateSecretError: see `plan_secret`.
        KubeError: the Secret cannot be read or written.
    """
    moment = now or datetime.now(UTC)
    for _ in range(_ATTEMPTS):
        present = await kube.find(SECRETS, secret, namespace=namespace)
        try:
            plan = plan_secret(present, dns_names=dns_names, now=moment, brought=brought)
        except CertificateSecretError as error:
            raise CertificateSecretError(f"Secret {namespace}/{secret}: {error}") from error
        if plan.data is None:
            return plan.ca
        try:
            if present is None:
                await kube.create(SECRETS, new_secret(name=secret, namespace=namespace, data=plan.data))
            else:
                version = present["metadata"]["resourceVersion"]
                await kube.merge_patch(
                    SECRETS, secret, {"data": dict(plan.data)}, namespace=namespace, resource_version=version
                )
        except (AlreadyExistsError, ConflictError):
            continue  # somebody else wrote it meanwhile: what they wrote counts
        return plan.ca
    raise CertificateSecretError(f"Secret {secret!r} keeps changing while its certificate is being renewed")


def _brought_authority(present: Mapping[str, bytes]) -> str:
    """What signs the user's own certificate: ca.crt, or a tls.crt that signs itself."""
    key = CA_CRT if present.get(CA_CRT) else TLS_CRT
    bundle = present.get(key, b"")
    add = f"add a {CA_CRT} with the PEM certificate that signs {TLS_CRT}"
    if not bundle:
        raise CertificateSecretError(f"it has no {CA_CRT}: {add}")
    try:
        certificate = x509.load_pem_x509_certificates(bundle)[0]
        text = bundle.decode()
    except ValueError as error:
        raise CertificateSecretError(f"its {key} is not PEM: {add}") from error
    if key == TLS_CRT:
        try:
            certificate.verify_directly_issued_by(certificate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise CertificateSecretError(f"it has no {CA_CRT}, and {TLS_CRT} does not sign itself: {add}") from error
    return text


def _usable(pair: Pair, *, now: datetime) -> bool:
    try:
        pair.loaded()
        return not needs_rotation(pair.certificate, now=now)
    except (ValueError, TypeError):
        return False


def _serves(leaf: Pair, *, ca: Pair, dns_names: Sequence[str]) -> bool:
    """Whether a certificate bears all names and is signed by the CA."""
    certificate = x509.load_pem_x509_certificate(leaf.certificate)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.certificate))
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return False
    return set(dns_names) <= set(alternative.value.get_values_for_type(x509.DNSName))


def _decoded(secret: Mapping[str, Any] | None) -> dict[str, bytes]:
    data = (secret or {}).get("data") or {}
    return {key: base64.b64decode(value) for key, value in data.items()}


def _first(bundle: bytes) -> bytes:
    """The first certificate of a bundle: the authority that signs now."""
    end = b"-----END CERTIFICATE-----\n"
    head, separator, _ = bundle.partition(end)
    return head + separator


def _is_certificate(pem: bytes) -> bool:
    try:
        x509.load_pem_x509_certificate(pem)
    except ValueError:
        return False
    return True


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder, *, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Pair:
    certificate = builder.sign(signer, hashes.SHA256())
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
