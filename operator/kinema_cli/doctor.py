# SPDX-License-Identifier: Apache-2.0
"""`kinema doctor`: looks at an installation from where the user stands."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable

import aiohttp

from kinema_api.names import API_VERSION
from kinema_cli import checks, clock
from kinema_cli.checks import Finding, Right, Verdict
from kinema_cli.cluster import FAILED, Where, cluster, explained
from kinema_cli.commands.options import Output
from kinema_cli.printing import console, say, show, structured, width
from kinema_cli.view.doctor import doctor as view
from kinema_kube import Kube
from kinema_kube.client import Objects
from kinema_kube.connect import NoClusterError
from kinema_kube.errors import ForbiddenError, KubeError, NotFoundError, UnauthorizedError
from kinema_kube.resources import CUSTOM_RESOURCE_DEFINITIONS, LEASES, TRAINING_POOLS, Resource

LEASE = "kinema-operator"
SERVICE = "kinema-server"
_NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
_SELF_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
_SECONDS = 10.0


def doctor(where: Where, *, system: str, output: Output, strict: bool, rights: bool = True) -> int:
    """Look at everything; 1 when something that jobs need is broken."""
    found = asyncio.run(_look(where, system, rights=rights))
    if output in (Output.JSON, Output.YAML):
        say(structured([{**finding._asdict(), "verdict": finding.verdict.value} for finding in found], output))
    else:
        screen = console()
        show(view(found, width=width(screen)), screen=screen)
    bad = {Verdict.FAIL, Verdict.WARN} if strict else {Verdict.FAIL}
    return FAILED if any(finding.verdict in bad for finding in found) else 0


async def _look(where: Where, system: str, *, rights: bool) -> list[Finding]:
    try:
        async with cluster(where, request_timeout=_SECONDS) as kube:
            return await look(kube, namespace=where.namespace, system=system, rights=rights)
    except NoClusterError as error:
        return [Finding(Verdict.FAIL, "kubeconfig", str(error))]
    except KubeError as error:
        fix = "check the address in the kubeconfig, the network and proxies on the way"
        return [Finding(Verdict.FAIL, "api-server", error.message, fix)]


async def look(kube: Kube, *, namespace: str, system: str, rights: bool = True) -> list[Finding]:
    """Every check, once there is a connection; what the user may do only if asked for."""
    host = kube.api.configuration.host
    try:
        first = checks.version(json.loads(await kube.raw("/version")), host)
    except (ForbiddenError, NotFoundError):
        first = Finding(Verdict.OK, "api-server", f"answers at {host}")
    except UnauthorizedError as error:
        return [Finding(Verdict.FAIL, "api-server", explained(error))]
    looks: tuple[tuple[str, Callable[[], Awaitable[list[Finding]]]], ...] = (
        ("crd", lambda: _definitions(kube)),
        ("operator", lambda: _operator(kube, system)),
        ("training-operator", lambda: _training_operator(kube)),
        ("server", lambda: _server(kube, system)),
        *([("rights", lambda: _rights(kube, namespace))] if rights else []),
        ("pools", lambda: _pools(kube)),
    )
    found = await asyncio.gather(*(_safely(name, look) for name, look in looks))
    return [first, *(finding for part in found for finding in part)]


async def _safely(name: str, look: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    try:
        return await look()
    except ForbiddenError as error:
        return [Finding(Verdict.UNKNOWN, name, f"was not checked: {error.message}")]
    except KubeError as error:
        return [Finding(Verdict.FAIL, name, error.message)]


async def _definitions(kube: Kube) -> list[Finding]:
    found = []
    for name, wanted in checks.own_definitions().items():
        try:
            definition = await kube.find(CUSTOM_RESOURCE_DEFINITIONS, name)
        except ForbiddenError:
            found.append(await _served(kube, name))
        else:
            found.append(checks.definition(name, definition, wanted))
    return found


async def _served(kube: Kube, name: str) -> Finding:
    """Whether a CRD's resource is served: what anybody may see of it."""
    plural = name.partition(".")[0]
    served = await _resources(kube, API_VERSION)
    if served is None or plural not in served:
        return Finding(Verdict.FAIL, f"crd/{plural}", "is not installed", "let an administrator install the chart")
    return Finding(Verdict.OK, f"crd/{plural}", "is served; you may not see of which release")


async def _resources(kube: Kube, version: str) -> list[str] | None:
    try:
        answer = json.loads(await kube.raw(f"/apis/{version}"))
    except NotFoundError:
        return None
    return [str(item["name"]) for item in answer.get("resources") or []]


async def _operator(kube: Kube, system: str) -> list[Finding]:
    found = await kube.find(LEASES, LEASE, namespace=system)
    return [checks.lease(found, namespace=system, now=clock.now())]


async def _training_operator(kube: Kube) -> list[Finding]:
    return [checks.training_operator(await _resources(kube, "kubeflow.org/v1"))]


async def _server(kube: Kube, system: str) -> list[Finding]:
    """Whether the server answers: straight from inside the cluster, through the API server from elsewhere."""
    look = f"see kubectl -n {system} get endpoints,pods, and logs deploy/{SERVICE}"
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
        return [await _straight(f"https://{SERVICE}.{system}.svc/healthz", look)]
    path = f"/api/v1/namespaces/{system}/services/https:{SERVICE}:https/proxy/healthz"
    try:
        await kube.raw(path)
    except ForbiddenError:
        return [Finding(Verdict.UNKNOWN, "server", f"was not checked: you may not reach services in {system}")]
    except KubeError as error:
        return [Finding(Verdict.FAIL, "server", f"Service {system}/{SERVICE} does not answer: {error.message}", look)]
    return [Finding(Verdict.OK, "server", f"Service {system}/{SERVICE} answers")]


async def _straight(url: str, look: str) -> Finding:
    # Nothing is sent but a question for its health, so that its certificate does not matter here.
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, ssl=False) as answer:
            if answer.status == 200:
                return Finding(Verdict.OK, "server", f"{url} answers")
            return Finding(Verdict.FAIL, "server", f"{url} answers {answer.status}", look)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Finding(Verdict.FAIL, "server", f"{url} does not answer: {error}", look)


async def _rights(kube: Kube, namespace: str) -> list[Finding]:
    allowed = await asyncio.gather(*(_may(kube, right, namespace) for right in checks.RIGHTS))
    denied = [right for right, may in zip(checks.RIGHTS, allowed, strict=True) if not may]
    return checks.rights(denied, namespace=namespace)


async def _may(kube: Kube, right: Right, namespace: str) -> bool:
    attributes = {
        "namespace": namespace,
        "verb": right.verb,
        "group": right.group,
        "resource": right.resource,
        **({"subresource": right.subresource} if right.subresource else {}),
    }
    identity = {"apiVersion": _SELF_REVIEWS.api_version, "kind": _SELF_REVIEWS.kind}
    review = await kube.create(_SELF_REVIEWS, {**identity, "spec": {"resourceAttributes": attributes}})
    return bool((review.get("status") or {}).get("allowed"))


async def _pools(kube: Kube) -> list[Finding]:
    try:
        pools = await kube.list(TRAINING_POOLS)
    except NotFoundError:
        return []
    nodes: Objects | None
    try:
        nodes = await kube.list(_NODES)
    except ForbiddenError:
        nodes = None
    return checks.pools(pools, nodes)
