# SPDX-License-Identifier: Apache-2.0
"""The server's certificate, from the first to the last day of its life."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from kinema_kube.resources import SECRETS
from kinema_operator import tls
from kinema_operator.certificate import Keeper
from kinema_operator.settings import Server

from tests.unit.operator.fakes import FakeKube

pytestmark = pytest.mark.unit

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = tls.server_names(service="kinema-server", namespace="kinema-system")


def secret(plan: tls.Plan) -> dict[str, Any]:
    assert plan.data is not None
    return tls.new_secret(name="tls", namespace="kinema-system", data=plan.data)


def decoded(secret: dict[str, Any], key: str) -> bytes:
    return base64.b64decode(secret["data"][key])


def handshake(folder: Path, made: dict[str, Any], *, trusted: bytes, name: str) -> None:
    """A real TLS handshake, with the checks that Python 3.13 makes strict."""
    for key in (tls.TLS_CRT, tls.TLS_KEY):
        (folder / key).write_bytes(decoded(made, key))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / tls.TLS_CRT, folder / tls.TLS_KEY)
    client_side = ssl.create_default_context(cadata=trusted.decode())
    client_side.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            server_side.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        client_side.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", NAMES)
def test_pods_trust_the_server_by_each_of_its_names(tmp_path: Path, name: str) -> None:
    plan = tls.plan_secret(None, dns_names=NAMES, now=NOW)
    handshake(tmp_path, secret(plan), trusted=plan.ca.encode(), name=name)


def test_nobody_else_is_trusted(tmp_path: Path) -> None:
    plan = tls.plan_secret(None, dns_names=NAMES, now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, secret(plan), trusted=plan.ca.encode(), name="elsewhere")
    other = tls.make_ca(now=NOW).certificate
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, secret(plan), trusted=other, name=NAMES[0])


def test_a_certificate_is_left_alone_for_two_thirds_of_its_life(tmp_path: Path) -> None:
    first = secret(tls.plan_secret(None, dns_names=NAMES, now=NOW))
    assert tls.plan_secret(first, dns_names=NAMES, now=NOW + timedelta(days=59)).data is None

    plan = tls.plan_secret(first, dns_names=NAMES, now=NOW + timedelta(days=61))
    second = secret(plan)
    assert decoded(second, tls.TLS_CRT) != decoded(first, tls.TLS_CRT)
    assert decoded(second, tls.CA_CRT) == decoded(first, tls.CA_CRT)
    # A pod that started before the rotation holds the CA of then; its server has the new certificate.
    leaf = x509.load_pem_x509_certificate(decoded(second, tls.TLS_CRT))
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(decoded(first, tls.CA_CRT)))


def test_an_authority_near_its_end_is_followed_by_another_and_both_are_trusted() -> None:
    first = secret(tls.plan_secret(None, dns_names=NAMES, now=NOW))
    plan = tls.plan_secret(first, dns_names=NAMES, now=NOW + timedelta(days=2500))
    second = secret(plan)
    trusted = x509.load_pem_x509_certificates(plan.ca.encode())
    assert len(trusted) == 2
    assert trusted[1] == x509.load_pem_x509_certificate(decoded(first, tls.CA_CRT))
    x509.load_pem_x509_certificate(decoded(second, tls.TLS_CRT)).verify_directly_issued_by(trusted[0])
    assert tls.plan_secret(second, dns_names=NAMES, now=NOW + timedelta(days=2501)).data is None


@pytest.mark.parametrize("key", [tls.TLS_CRT, tls.TLS_KEY, tls.CA_CRT, tls.CA_KEY])
@pytest.mark.parametrize("value", ["", "garbage"])
def test_what_is_broken_is_made_anew(tmp_path: Path, key: str, value: str) -> None:
    made = secret(tls.plan_secret(None, dns_names=NAMES, now=NOW))
    made["data"][key] = base64.b64encode(value.encode()).decode()
    plan = tls.plan_secret(made, dns_names=NAMES, now=NOW)
    handshake(tmp_path, secret(plan), trusted=plan.ca.encode(), name=NAMES[0])


def test_a_new_name_gets_a_new_certificate() -> None:
    made = secret(tls.plan_secret(None, dns_names=NAMES, now=NOW))
    plan = tls.plan_secret(made, dns_names=[*NAMES, "kinema.example"], now=NOW)
    assert plan.data is not None
    assert plan.ca.encode() == decoded(made, tls.CA_CRT)


def brought(**data: bytes) -> dict[str, Any]:
    """A Secret of the user's own; `ca_crt` for ca.crt."""
    encoded = {key.replace("_", "."): base64.b64encode(value).decode() for key, value in data.items()}
    return {"metadata": {"name": "mine", "namespace": "kinema-system"}, "data": encoded}


AUTHORITY = tls.make_ca(now=NOW)
LEAF = tls.make_leaf(AUTHORITY, dns_names=NAMES, now=NOW)


@pytest.mark.parametrize(
    "given",
    [brought(ca_crt=AUTHORITY.certificate, tls_crt=LEAF.certificate), brought(tls_crt=AUTHORITY.certificate)],
    ids=["with its authority", "self-signed"],
)
def test_a_secret_of_the_user_is_left_alone(given: dict[str, Any]) -> None:
    expected = tls.Plan(data=None, ca=AUTHORITY.certificate.decode())
    assert tls.plan_secret(given, dns_names=NAMES, now=NOW) == expected
    assert tls.plan_secret(given, dns_names=NAMES, now=NOW, brought=True) == expected


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (None, "does not exist"),
        (brought(), r"has no ca\.crt"),
        (brought(ca_crt=b"\x30\x82\xff\xfe"), r"ca\.crt is not PEM"),
        (brought(ca_crt=b"\xff\n" + AUTHORITY.certificate), r"ca\.crt is not PEM"),
        (brought(tls_crt=LEAF.certificate), r"tls\.crt does not sign itself"),
    ],
    ids=["missing", "empty", "DER", "not text", "no authority"],
)
def test_a_broken_secret_of_the_user_costs_progress_only(
    given: dict[str, Any] | None, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeKube()
    if given is not None:
        fake.put(SECRETS, given)
    controller: Any = SimpleNamespace(server_ca="")
    server = Server(namespace="kinema-system", secret="mine", brought=True)
    keeper = Keeper(kube=fake.kube, server=server, controller=controller)
    asyncio.run(asyncio.wait_for(keeper.begin(), timeout=10))
    assert controller.server_ca == ""
    assert re.search(rf"jobs run without progress: Secret kinema-system/mine: .*{complaint}", caplog.text)
    assert fake.verbs() == ["get"], "nothing is written under the user's name"
    # It is looked at again, and what the user has mended by then counts.
    fake.put(SECRETS, brought(ca_crt=AUTHORITY.certificate))
    asyncio.run(asyncio.wait_for(keeper.begin(), timeout=10))
    assert controller.server_ca == AUTHORITY.certificate.decode()
