# SPDX-License-Identifier: Apache-2.0
"""Files that hold a certificate, and files that do not."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kinema_operator import tls
from kinema_server.certificate import Certificate, CertificateError

from tests.unit.server.conftest import put_certificate, trusting

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, authority: tls.Pair) -> Path:
    put_certificate(tmp_path, authority)
    return tmp_path


def load(folder: Path) -> Certificate:
    return Certificate(certificate=folder / "tls.crt", key=folder / "tls.key")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Succeeds when the client trusts what the server shows."""
    inwards, outwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(outwards, inwards, server_hostname="localhost"),
        server.wrap_bio(inwards, outwards, server_side=True),
    ]
    while sides:
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                continue


def test_only_a_change_is_loaded(folder: Path, authority: tls.Pair) -> None:
    certificate = load(folder)
    assert not certificate.refresh()
    os.utime(folder / "tls.crt")
    assert not certificate.refresh()
    put_certificate(folder, authority)
    assert certificate.refresh()


@pytest.mark.parametrize("file", ["tls.crt", "tls.key"])
def test_a_pair_that_does_not_fit_leaves_the_old_one_in_use(folder: Path, file: str, authority: tls.Pair) -> None:
    certificate = load(folder)
    handshake(certificate.context, trusting(authority))
    kept = (folder / file).read_bytes()
    put_certificate(folder, tls.make_ca(now=datetime.now(UTC)))
    (folder / file).write_bytes(kept)
    with pytest.raises(CertificateError, match=r"tls\.crt"):
        certificate.refresh()
    handshake(certificate.context, trusting(authority))
    put_certificate(folder, authority)
    assert certificate.refresh()


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
@pytest.mark.parametrize("file", ["tls.crt", "tls.key"])
def test_the_server_does_not_start_without_a_certificate(folder: Path, file: str, content: bytes | None) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(CertificateError):
        load(folder)
