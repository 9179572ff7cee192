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
from kinema_kube.connect import proxy_of

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
    way = _way(address, configuration, _token(address, configuration))
    url = f"{way.url}/{VERSION}/{path}" + (f"?{urlencode(query)}" if query else "")
    answered = False
    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, await _answer(session, way, url) as answer:
            answered = True
            yield answer
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        if answered and not isinstance(error, aiohttp.ClientError | TimeoutError):
            # What failed is what the caller does with the answer.
            raise
        raise ServerError(
            f"the server does not answer at {way.url}: {type(error).__name__}: {error}; --server names its address, and"
            " `kinema doctor` looks whether it runs",
            code=FAILED,
        ) from None


async def _answer(session: aiohttp.ClientSession, way: _Way, url: str) -> aiohttp.ClientResponse:
    """The first answer that is a good one; while the pod that reads the workspace starts, the server says to wait."""
    due, told = time.monotonic() + PATIENCE, False
    while True:
        answer = await session.get(
            url,
            headers=way.headers,
            ssl=way.trust,
            proxy=way.proxy,
            server_hostname=way.server_name,
            # It would carry the token elsewhere.
            allow_redirects=False,
        )
        if answer.status < 300:
            return answer
        async with answer:
            pause = _pause(answer)
            if pause is None or time.monotonic() + pause > due:
                raise ServerError(_said(answer.status, await answer.text(), way.url), code=FAILED)
        if not told:
            note("the pod that reads the workspace starts; waiting for it")
            told = True
        await asyncio.sleep(pause)


def _token(address: ServerAddress, configuration: Any) -> str:
    scheme, _, own = (configuration.api_key.get("BearerToken") or "").partition(" ")
    token = address.token or (own.strip() if scheme.lower() == "bearer" else "")
    if not token:
        raise ServerError(
            "the server knows tokens, and your kubeconfig has none (a client certificate?): set KINEMA_TOKEN, for"
            " instance to what `kubectl create token ACCOUNT` prints",
            code=FAILED,
        )
    return token


def _pause(answer: aiohttp.ClientResponse) -> float | None:
    """Seconds after which to ask again; None where that would not help."""
    said = answer.headers.get("Retry-After", "")
    return min(10.0, max(0.1, float(said))) if answer.status == 503 and said.isdigit() else None


@dataclass(frozen=True, slots=True)
class _Way:
    """How the server is reached."""

    url: str
    headers: dict[str, str]
    trust: ssl.SSLContext
    proxy: str | None
    server_name: str | None = None
    """The name in the certificate, where it is not that of the address."""


def _way(address: ServerAddress, configuration: Any, token: str) -> _Way:
    bearer = {"Authorization": f"Bearer {token}"}
    if address.url:
        url = address.url.rstrip("/")
        return _Way(url, bearer, _signed_by(address.authority), proxy_of(url))
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG") and address.authority:
        return _Way(f"https://{SERVICE}.{address.system}.svc", bearer, _signed_by(address.authority), None)
    # The API server takes the Authorization header for itself; another one carries the token on.
    own = configuration.api_key.get("BearerToken")
    headers = {HEADER_TOKEN: token, **({"Authorization": own} if own else {})}
    proxy = f"{configuration.host}/api/v1/namespaces/{quote(address.system)}/services/https:{SERVICE}:https/proxy"
    return _Way(proxy, headers, _trust(configuration), configuration.proxy, configuration.tls_server_name)


def _signed_by(authority: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise CommandError(f"--server-ca {authority} holds no certificates: {error.strerror or error}") from None


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
