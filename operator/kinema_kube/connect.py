# SPDX-License-Identifier: Apache-2.0
"""Finds the API server and the credentials for it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from kinema_kube.client import Kube

Loader = Callable[[Configuration], Awaitable[None]]

_HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"


class NoClusterError(Exception):
    """There is no usable configuration of an API server."""


def loader(*, kubeconfig: str | Path | None = None, context: str | None = None) -> Loader:
    """What fills a Configuration: a kubeconfig that was named, $KUBECONFIG, the pod's account, or ~/.kube/config.

    Raises:
        NoClusterError: there is no such file.
    """
    named = str(kubeconfig or os.environ.get("KUBECONFIG") or "")
    if not named and os.environ.get(_HOST_VARIABLE):
        return _load_incluster
    path = named or str(Path.home() / ".kube" / "config")
    if not any(Path(part).expanduser().is_file() for part in path.split(os.pathsep)):
        raise NoClusterError(f"no kubeconfig at {path}; name one by --kubeconfig or in KUBECONFIG")

    async def load(configuration: Configuration) -> None:
        await _load_file(configuration, path, context)

    return load


async def _load_incluster(configuration: Configuration) -> None:
    # The package itself reads the token file again once a minute, since kubelet renews it.
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise NoClusterError(f"the pod's service account cannot be used: {error}") from error


async def _load_file(configuration: Configuration, path: str, context: str | None) -> None:
    try:
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=path, context=context, client_configuration=configuration, persist_config=False
        )
    except ConfigException as error:
        raise NoClusterError(f"{path}: {error}") from error


def proxy_of(server: str) -> str | None:
    """The proxy that the environment wants on the way to a server (HTTPS_PROXY, NO_PROXY); None for none."""
    address = urlsplit(server)
    if not address.hostname or proxy_bypass(address.hostname):
        return None
    return getproxies().get(address.scheme)


@asynccontextmanager
async def connect(
    *, kubeconfig: str | Path | None = None, context: str | None = None, request_timeout: float = 30.0
) -> AsyncIterator[Kube]:
    """A client of the cluster; closed at the end.

    Args:
        kubeconfig: file to read; when left out $KUBECONFIG, then the pod's service account, then ~/.kube/config.
        context: of the kubeconfig; its current one when left out.
        request_timeout: seconds for one request.

    Raises:
        NoClusterError: nothing names a cluster, or what does is broken.
    """
    load = loader(kubeconfig=kubeconfig, context=context)
    configuration = Configuration()
    await load(configuration)
    # No limit: a request that waits for a connection may be the one that keeps the Lease.
    configuration.connection_pool_maxsize = 0
    configuration.proxy = configuration.proxy or proxy_of(configuration.host)
    # Else each request reads the environment and ~/.netrc anew, in two threads that wait for the event loop's.
    configuration.client_session_kwargs = {"trust_env": False}
    kube = Kube(configuration, reload=load, request_timeout=request_timeout)
    try:
        yield kube
    finally:
        await kube.close()
