# SPDX-License-Identifier: Apache-2.0
"""The server's certificate: taken from two files, and again whenever they change, under a listener that stays open."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509

from kinema_server import metrics

logger = logging.getLogger(__name__)


class CertificateError(Exception):
    """The files hold no certificate with its key."""


class Certificate:
    """A TLS context that follows its files."""

    def __init__(self, *, certificate: Path, key: Path) -> None:
        """Load the files.

        Raises:
            CertificateError: a file is missing, or the key is not the certificate's.
        """
        self._certificate = certificate
        self._key = key
        self._digest = b""
        self.context = _context()
        """Handshakes use what was loaded last; connections that are open keep what they have."""
        self.refresh()

    def refresh(self) -> bool:
        """Load the files if their content has changed; whether it had.

        Raises:
            CertificateError: as above; what was loaded before stays in use.
        """
        try:
            chain, key = self._certificate.read_bytes(), self._key.read_bytes()
        except OSError as error:
            raise CertificateError(f"the server's certificate cannot be read: {error}") from error
        digest = hashlib.sha256(chain + b"\0" + key).digest()
        if digest == self._digest:
            return False
        try:
            end = x509.load_pem_x509_certificate(chain).not_valid_after_utc
            with _in_memory(chain + b"\n" + key) as path:
                # A failed load would leave the context in use without a key: try on one that nobody uses.
                _context().load_cert_chain(path)
                self.context.load_cert_chain(path)
        except (ssl.SSLError, ValueError) as error:
            raise CertificateError(
                f"{self._certificate} and {self._key} are not a certificate and its key: {error}"
            ) from error
        self._digest = digest
        metrics.CERTIFICATE_END.set(end.timestamp())
        logger.info("certificate loaded", extra={"file": str(self._certificate), "not_after": end.isoformat()})
        return True

    async def follow(self, *, interval: float) -> None:
        """Refresh for ever; a pair that does not fit is reported and looked at again."""
        while True:
            await asyncio.sleep(interval)
            try:
                await asyncio.to_thread(self.refresh)
            except CertificateError as error:
                logger.error("certificate not renewed", extra={"error": str(error)})


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path that reads `data`: `load_cert_chain` takes paths only, and a key has no business on a disk."""
    descriptor = os.memfd_create("kinema-certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
