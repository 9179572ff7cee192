# SPDX-License-Identifier: Apache-2.0
"""Keeps the server's certificate in good order, and tells the controller whom pods trust."""

from __future__ import annotations

import asyncio
import logging

from kinema_kube import Kube
from kinema_kube.errors import KubeError
from kinema_operator.controller import Controller
from kinema_operator.queue import backoff
from kinema_operator.settings import Server
from kinema_operator.tls import CertificateSecretError, ensure_certificate, server_names

log = logging.getLogger(__name__)

CHECK = 3600.0
"""Seconds between two looks at the Secret."""
RETRY = 15.0
"""Seconds after which a failed look is repeated."""


class Keeper:
    """Looks after the Secret."""

    def __init__(self, *, kube: Kube, server: Server, controller: Controller) -> None:
        self._kube = kube
        self._server = server
        self._controller = controller

    async def begin(self) -> None:
        """Wait for the certificate before the first job. A broken Secret costs progress only: nobody waits for it."""
        failures = 0
        while not await self._once():
            # Every job waits for it.
            await asyncio.sleep(min(RETRY, backoff(failures)))
            failures += 1

    async def forever(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(CHECK if self._controller.server_ca else RETRY)
            await self._once()

    async def _once(self) -> bool:
        """Whether there is an answer, even if it is that there is no certificate."""
        server = self._server
        try:
            self._controller.server_ca = await ensure_certificate(
                self._kube,
                secret=server.secret,
                namespace=server.namespace,
                dns_names=server_names(service=server.service, namespace=server.namespace),
                brought=server.brought,
            )
        except (CertificateSecretError, ValueError) as error:
            log.error("jobs run without progress: %s", error)
        except KubeError as error:
            log.warning("the server's certificate: %s: %s", type(error).__name__, error)
            return False
        return True
