# SPDX-License-Identifier: Apache-2.0
"""Asks Kinema's server, which alone can look into a workspace: history and samples."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from kinema_api.names import HEADER_TOKEN, VERSION
from kinema_cli.cluster import FAILED
from kinema_cli.errors import CommandError
from kinema_cli.printing import note
from kinema_kube import Kube

SERVICE = "kinema-server"
PATIENCE = 120.0
"""For how long the pod that reads a workspace may take to start, in seconds."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the server is, and who asks."""

    url: str | None
    """None: its Service, through the API server or from inside the cluster."""
    token: str | None
    """None: that of the kubeconfig."""
    system: str
    """The namespace of its Service."""
    authority: str | None = None
    """A file with the certificates that sign the server; the system's when None."""


class ServerError(CommandError):
    """The server could not be asked, or did not answer."""


@asynccontextmanager
async def asked(
    kube: Kube, address: ServerAddress, path: str, query: Mapping[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The server's answer to a GET below `/v1alpha1`.

    Raises:
        ServerError: it cannot be reached, or refuses; what it said is the message.
    """
    configuration = kube.api.configuration
    token = address.token or _own_token(configuration.api_key)
    if not token:
        raise ServerError(
            "the server knows tokens, and your kubeconfig has none (a client certificate?): set KINEMA_TOKEN, for"
            " instance to what `kubectl create token ACCOUNT` prints",
            code=FAILED,
        )
    url, headers, trust = _way(address, configuration, token)
    full = f"{url}/{VERSION}/{path}" + (f"?{urlencode(query)}" if query else "")
    due, told = time.monotonic() + PATIENCE, False
    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                async with session.get(full, headers=headers, ssl=trust, proxy=configuration.proxy) as answer:
                    if answer.status < 300:
                        yield answer
                        return
                    pause = _pause(answer)
                    if pause is None or time.monotonic() + pause > due:
                        raise ServerError(_said(answer.status, await answer.text(), url), code=FAILED)
                if not told:
                    note("the pod that reads the workspace starts; waiting for it")
                    told = True
                await asyncio.sleep(pause)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ServerError(
            f"the server does not answer at {url}: {type(error).__name__}: {error}; --server names its address, and"
            " `kinema doctor` looks whether it runs",
            code=FAILED,
        ) from None


def _pause(answer: aiohttp.ClientResponse) -> float | None:
    """Seconds after which to ask again; None where that would not help."""
    said = answer.headers.get("Retry-After", "")
    return min(10.0, max(0.1, float(said))) if answer.status == 503 and said.isdigit() else None


def _own_token(keys: Mapping[str, str]) -> str:
    scheme, _, token = (keys.get("BearerToken") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _way(address: ServerAddress, configuration: Any, token: str) -> tuple[str, dict[str, str], ssl.SSLContext]:
    """Address, headers and certificates of the way to the server."""
    bearer = {"Authorization": f"Bearer {token}"}
    if address.url:
        return address.url.rstrip("/"), bearer, ssl.create_default_context(cafile=address.authority)
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG") and address.authority:
        trust = ssl.create_default_context(cafile=address.authority)
        return f"https://{SERVICE}.{address.system}.svc", bearer, trust
    # The API server takes the Authorization header for itself; another one carries the token on.
    own = configuration.api_key.get("BearerToken")
    headers = {HEADER_TOKEN: token, **({"Authorization": own} if own else {})}
    proxy = f"{configuration.host}/api/v1/namespaces/{quote(address.system)}/services/https:{SERVICE}:https/proxy"
    return proxy, headers, _trust(configuration)


def _trust(configuration: Any) -> ssl.SSLContext:
    """As the kubeconfig says, with its client certificate."""
    trust = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        trust.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    return trust


def _said(status: int, body: str, url: str) -> str:
    """What an error says: problem details of the server, or a Status of the API server."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        found = {}
    found = found if isinstance(found, dict) else {}
    said = found.get("detail") or found.get("message") or found.get("title") or body[:200] or f"HTTP {status}"
    if status == 403 and "proxy" in url:
        return f"{said}; ask for the right to reach Kinema's server, or name its address by --server"
    return f"the server says: {said} ({status})"


async def data(kube: Kube, address: ServerAddress, path: str, query: Mapping[str, str] | None = None) -> Any:
    """The server's answer as data."""
    async with asked(kube, address, path, query) as answer:
        return json.loads(await answer.read())


def job_path(namespace: str, name: str) -> str:
    """A job below `/v1alpha1`."""
    return f"namespaces/{quote(namespace, safe='')}/videotrainingjobs/{quote(name, safe='')}"
