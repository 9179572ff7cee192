# SPDX-License-Identifier: Apache-2.0
"""Who asks, and whether the cluster's own rules let them: what a route depends on before it does anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPBearer

from kinema_kube import Resource
from kinema_kube.resources import EVENTS, PODS, VIDEO_TRAINING_JOBS
from kinema_server.reviews import Identity, Reviews, Right, bearer_token
from kinema_server.services import JobName, Namespace, Shared

BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="A token that the cluster's API server accepts, such as `kubectl create token ACCOUNT` prints.",
)

Watch = Annotated[bool, Query(description="Answer with what there is and then what changes, as server-sent events.")]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    token: str
    identity: Identity
    reviews: Reviews

    async def need(self, right: Right) -> None:
        """Go on only with a right.

        Raises:
            Refusal: 403.
        """
        await self.reviews.authorize(self.token, self.identity, right)


@dataclass(frozen=True, slots=True)
class Granted:
    """A caller, and what was asked before the route did anything."""

    caller: Caller
    rights: tuple[Right, ...]

    async def again(self) -> None:
        """Ask once more, for what goes on for long.

        Raises:
            Refusal: 401 or 403, the token has ended or the right was taken away.
        """
        identity = await self.caller.reviews.identify(self.caller.token)
        for right in self.rights:
            await self.caller.reviews.authorize(self.caller.token, identity, right)


async def known(request: Request, shared: Shared, _scheme: Annotated[Any, Security(BEARER)]) -> Caller:
    """Whoever has a token that the API server accepts.

    Raises:
        Refusal: 401.
    """
    token = bearer_token(request.headers)
    return Caller(token=token, identity=await shared.reviews.identify(token), reviews=shared.reviews)


Known = Annotated[Caller, Depends(known)]


def right_on(verb: str, kind: Resource, *, subresource: str = "") -> Callable[[str | None, str | None], Right]:
    """Builds the right to `verb` a kind, in a namespace, of a name."""

    def build(namespace: str | None, name: str | None) -> Right:
        return Right(
            verb=verb,
            group=kind.group,
            version=kind.version,
            resource=kind.plural,
            subresource=subresource,
            namespace=namespace,
            name=name,
        )

    return build


async def looks_everywhere(caller: Known, watch: Watch = False) -> Granted:
    """A dependency: the caller may list the jobs of all namespaces, or watch them."""
    return await _granted(caller, right_on("watch" if watch else "list", VIDEO_TRAINING_JOBS)(None, None))


async def looks_at_jobs(namespace: Namespace, caller: Known, watch: Watch = False) -> Granted:
    """A dependency: the caller may list the jobs of the path's namespace, or watch them."""
    return await _granted(caller, right_on("watch" if watch else "list", VIDEO_TRAINING_JOBS)(namespace, None))


async def looks_at_job(namespace: Namespace, name: JobName, caller: Known, watch: Watch = False) -> Granted:
    """A dependency: the caller may get the path's job, and watch it if that is asked for."""
    verbs = ("get", "watch") if watch else ("get",)
    return await _granted(caller, *(right_on(verb, VIDEO_TRAINING_JOBS)(namespace, name) for verb in verbs))


def in_namespace(verb: str) -> Callable[..., Awaitable[Granted]]:
    """A dependency: the caller may `verb` the jobs of the path's namespace."""

    async def check(namespace: Namespace, caller: Known) -> Granted:
        return await _granted(caller, right_on(verb, VIDEO_TRAINING_JOBS)(namespace, None))

    return check


def on_job(*verbs: str) -> Callable[..., Awaitable[Granted]]:
    """A dependency: the caller may do each of `verbs` to the path's job."""

    async def check(namespace: Namespace, name: JobName, caller: Known) -> Granted:
        rights = (right_on(verb, VIDEO_TRAINING_JOBS)(namespace, name) for verb in verbs)
        return await _granted(caller, *rights)

    return check


async def reads_logs(namespace: Namespace, name: JobName, caller: Known) -> Granted:
    """A dependency: the caller may get the job, and the logs of the namespace's pods."""
    job = right_on("get", VIDEO_TRAINING_JOBS)(namespace, name)
    return await _granted(caller, job, right_on("get", PODS, subresource="log")(namespace, None))


async def reads_events(namespace: Namespace, name: JobName, caller: Known) -> Granted:
    """A dependency: the caller may get the job, and list the namespace's events."""
    job = right_on("get", VIDEO_TRAINING_JOBS)(namespace, name)
    return await _granted(caller, job, right_on("list", EVENTS)(namespace, None))


async def _granted(caller: Caller, *rights: Right) -> Granted:
    for right in rights:
        await caller.need(right)
    return Granted(caller=caller, rights=rights)
