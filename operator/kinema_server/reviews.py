# SPDX-License-Identifier: Apache-2.0
"""Asks the API server who sends a token, and what they may do; the answers are remembered for a moment."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from cachetools import TTLCache

from kinema_api.names import HEADER_TOKEN
from kinema_kube import Kube
from kinema_kube.resources import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS
from kinema_server.refusal import Refusal, forbidden, unauthorized

logger = logging.getLogger(__name__)

REFUSAL_SECONDS = 2.0
"""The longest time for which a refusal is remembered: a right that was just given is missed for no longer."""
LIMIT = 4096
"""Answers that are remembered at once."""
_TOKEN_LIMIT = 16 * 1024
_ACCOUNT_PREFIX = "system:serviceaccount:"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, as the API server knows them."""

    username: str
    uid: str
    groups: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]]

    @property
    def account_namespace(self) -> str | None:
        """The namespace of a service account; None for anybody else."""
        if not self.username.startswith(_ACCOUNT_PREFIX):
            return None
        namespace, separator, _ = self.username.removeprefix(_ACCOUNT_PREFIX).partition(":")
        return namespace if separator else None

    def only(self, key: str) -> str | None:
        """The one value of an extra attribute; None when there is none, or more than one."""
        values = self.extra.get(key, ())
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True, slots=True)
class Right:
    """Something that the cluster's rules allow or not, in the words of a SubjectAccessReview."""

    verb: str
    group: str
    resource: str
    namespace: str | None
    """None: all namespaces."""
    name: str | None = None
    """None: every object."""
    subresource: str = ""
    version: str = ""

    def attributes(self) -> dict[str, str]:
        """As a SubjectAccessReview spells it."""
        fields = {
            "group": self.group,
            "version": self.version,
            "resource": self.resource,
            "subresource": self.subresource,
            "verb": self.verb,
            "namespace": self.namespace,
            "name": self.name,
        }
        return {key: value for key, value in fields.items() if value or key == "group"}  # type: ignore[misc]

    def __str__(self) -> str:
        kind = self.resource + (f"/{self.subresource}" if self.subresource else "")
        what = (f"{kind}.{self.group}" if self.group else kind) + (f" {self.name!r}" if self.name else "")
        where = f"in namespace {self.namespace!r}" if self.namespace else "in all namespaces; ask for one namespace"
        return f"{self.verb} {what} {where}"


def bearer_token(headers: Mapping[str, str]) -> str:
    """The token that a request's headers carry.

    Raises:
        Refusal: 401, there is none.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else headers.get(HEADER_TOKEN, "").strip()
    if not token:
        raise unauthorized("no token: send the header Authorization: Bearer TOKEN")
    if len(token) > _TOKEN_LIMIT:
        raise unauthorized(f"the token is longer than {_TOKEN_LIMIT} bytes")
    return token


def digest_of(token: str) -> bytes:
    """What stands for a token in memory, which does not hold the token itself."""
    return hashlib.sha256(token.encode()).digest()


class Reviews:
    """What the API server said of tokens a moment ago.

    Args:
        kube: where to ask.
        seconds: for how long a grant is trusted. A refusal is forgotten no later than a grant would be.
    """

    def __init__(self, kube: Kube, *, seconds: float) -> None:
        self._kube = kube
        self._granted: TTLCache[Hashable, Any] = TTLCache(maxsize=LIMIT, ttl=seconds)
        self._refused: TTLCache[Hashable, Refusal] = TTLCache(maxsize=LIMIT, ttl=min(seconds, REFUSAL_SECONDS))
        self._asking: dict[Hashable, asyncio.Task[Any]] = {}

    async def identify(self, token: str, *, audience: str | None = None) -> Identity:
        """Who holds a token.

        Args:
            token: what was sent.
            audience: the token must be made for it; for the API server itself when left out.

        Raises:
            Refusal: 401, the token is good for nobody.
        """
        return await self._once((digest_of(token), audience), lambda: _identify(self._kube, token, audience))

    async def authorize(self, token: str, identity: Identity, right: Right) -> None:
        """Let pass whoever has a right, by the cluster's own rules.

        Raises:
            Refusal: 403.
        """
        await self._once((digest_of(token), right), lambda: _authorize(self._kube, identity, right))

    async def _once(self, key: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer to a question; of many who ask at the same time one does."""
        if key in self._granted:
            return cast(Answer, self._granted[key])
        if key in self._refused:
            refused = self._refused[key]
            raise Refusal(refused.code, refused.message, headers=refused.headers)
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.ensure_future(self._ask(key, ask))
        # Who goes away does not take the answer from the others.
        return cast(Answer, await asyncio.shield(task))

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            answer = await ask()
        except Refusal as refusal:
            self._refused[key] = refusal
            raise
        else:
            self._granted[key] = answer
            return answer
        finally:
            del self._asking[key]


async def _identify(kube: Kube, token: str, audience: str | None) -> Identity:
    spec: dict[str, Any] = {"token": token, **({"audiences": [audience]} if audience else {})}
    review = await kube.create(TOKEN_REVIEWS, _object(TOKEN_REVIEWS.api_version, TOKEN_REVIEWS.kind, spec))
    status = review.get("status") or {}
    # An authenticator that knows no audiences leaves the field out: then the token proves nothing about ours.
    audience_holds = audience is None or audience in (status.get("audiences") or [])
    if not status.get("authenticated") or not audience_holds:
        logger.info("token refused", extra={"audience": audience or "", "error": status.get("error") or ""})
        of = f" for audience {audience}" if audience else ""
        raise unauthorized(f"the token is not valid{of}: it has expired, or was made for something else")
    user = status.get("user") or {}
    return Identity(
        username=user.get("username") or "",
        uid=user.get("uid") or "",
        groups=tuple(user.get("groups") or ()),
        extra={key: tuple(values or ()) for key, values in (user.get("extra") or {}).items()},
    )


async def _authorize(kube: Kube, identity: Identity, right: Right) -> None:
    spec = {
        "user": identity.username,
        "uid": identity.uid,
        "groups": list(identity.groups),
        "extra": {key: list(values) for key, values in identity.extra.items()},
        "resourceAttributes": right.attributes(),
    }
    kind = SUBJECT_ACCESS_REVIEWS
    review = await kube.create(kind, _object(kind.api_version, kind.kind, spec))
    if not (review.get("status") or {}).get("allowed"):
        raise forbidden(f"user {identity.username!r} may not {right}")


def _object(api_version: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "spec": dict(spec)}
