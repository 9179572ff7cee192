# SPDX-License-Identifier: Apache-2.0
"""The user's cluster: which one, which namespace, and what its refusals mean to a person."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kinema_cli.errors import CommandError
from kinema_kube import Kube, connect
from kinema_kube.client import Object
from kinema_kube.connect import NoClusterError
from kinema_kube.errors import (
    ForbiddenError,
    GoneError,
    InvalidError,
    KubeError,
    NotFoundError,
    UnauthorizedError,
    UnreachableError,
)
from kinema_kube.resources import VIDEO_TRAINING_JOBS

T = TypeVar("T")

MANAGER = "kinema-cli"
"""The field manager of what the command line writes."""
FAILED = 1
_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Where:
    """The cluster that a command is about, as its options say."""

    kubeconfig: Path | None = None
    context: str | None = None
    named: str | None = None
    """The namespace of --namespace."""

    @property
    def namespace(self) -> str:
        """The namespace: the named one, that of the context, that of the pod, or `default`.

        Raises:
            CommandError: there is no such context.
        """
        return self.named or _namespace(self) or "default"

    @property
    def options(self) -> str:
        """What to type after another command so that it is about the same namespace and cluster."""
        parts = [("--kubeconfig", self.kubeconfig), ("--context", self.context), ("-n", self.named)]
        return "".join(f" {option} {value}" for option, value in parts if value)


def _namespace(where: Where) -> str | None:
    # The package is slow to import; a command that comes here has to wait for it anyway.
    from kubernetes.aio.config import ConfigException
    from kubernetes.aio.config.kube_config import list_kube_config_contexts

    named = str(where.kubeconfig or os.environ.get("KUBECONFIG") or "")
    if not named and _ACCOUNT_NAMESPACE.is_file():
        return _ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
    path = named or str(Path.home() / ".kube" / "config")
    try:
        contexts, current = list_kube_config_contexts(path)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError, TypeError):
        # What is wrong with it is said when the cluster is connected to.
        return None
    wanted = where.context or current["name"]
    found = next((entry for entry in contexts if entry["name"] == wanted), None)
    if where.context and found is None:
        known = ", ".join(entry["name"] for entry in contexts)
        raise CommandError(f"--context {where.context}: the contexts of {path} are {known}")
    return ((found or {}).get("context") or {}).get("namespace")


@asynccontextmanager
async def cluster(where: Where, *, request_timeout: float = 30.0) -> AsyncIterator[Kube]:
    """A client of the cluster."""
    async with connect(kubeconfig=where.kubeconfig, context=where.context, request_timeout=request_timeout) as kube:
        yield kube


def run(where: Where, work: Callable[[Kube], Awaitable[T]]) -> T:
    """Do something with the cluster.

    Raises:
        CommandError: it cannot be reached, or refuses; in words for a person.
    """

    async def connected() -> T:
        async with cluster(where) as kube:
            return await work(kube)

    try:
        return asyncio.run(connected())
    except NoClusterError as error:
        raise CommandError(str(error), code=FAILED) from None
    except KubeError as error:
        raise CommandError(explained(error), code=FAILED) from None


def explained(error: KubeError) -> str:
    """What the API server refused, and what to do about it."""
    match error:
        case UnreachableError():
            return f"the API server does not answer: {error.message}; `kinema doctor` looks at what is in the way"
        case UnauthorizedError():
            return f"the API server does not know you ({error.message}): log in again, or check the kubeconfig's user"
        case ForbiddenError():
            return f"{error.message}; ask your administrator for that right (the chart's view and edit roles have it)"
        case NotFoundError() if not error.details.get("name"):
            return f"{error.message}; is Kinema installed? `kinema doctor` looks"
        case InvalidError():
            return f"the API server refuses the job: {error.message}"
        case GoneError():
            return f"{error.message}; run the command again"
        case _:
            return error.message


async def find_job(kube: Kube, name: str, *, namespace: str) -> Object:
    """One job.

    Raises:
        CommandError: there is none of that name.
    """
    try:
        return await kube.get(VIDEO_TRAINING_JOBS, name, namespace=namespace)
    except NotFoundError as error:
        if not error.details.get("name"):
            raise
        raise CommandError(
            f"there is no job {name} in namespace {namespace}: `kinema list -A` shows all, -n names a namespace",
            code=FAILED,
        ) from None
