# SPDX-License-Identifier: Apache-2.0
"""Asks the API server who sends a token, and what they may do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from kinema_api import names
from kinema_kube import Kube
from kinema_kube.resources import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS
from kinema_server.refusal import forbidden, unauthorized

logger = logging.getLogger(__name__)

_TOKEN_LIMIT = 16 * 1024
_ACCOUNT_PREFIX = "system:serviceaccount:"


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


def bearer_token(request: Request) -> str:
    """The token of a request.

    Raises:
        Refusal: 401, there is none.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise unauthorized("no token: send the header Authorization: Bearer TOKEN")
    if len(token) > _TOKEN_LIMIT:
        raise unauthorized(f"the token is longer than {_TOKEN_LIMIT} bytes")
    return token


async def identify(kube: Kube, token: str, *, audience: str | None = None) -> Identity:
    """Who holds a token.

    Args:
        kube: where to ask.
        token: what was sent.
        audience: the token must be made for it; for the API server itself when left out.

    Raises:
        Refusal: 401, the token is good for nobody.
    """
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


async def authorize(
    kube: Kube, identity: Identity, *, verb: str, namespace: str | None, name: str | None = None
) -> None:
    """Let pass who may `verb` the jobs of a namespace (of all when it is None), by the cluster's own rules.

    Raises:
        Refusal: 403.
    """
    attributes = {
        "group": names.GROUP,
        "version": names.VERSION,
        "resource": names.JOB_PLURAL,
        "verb": verb,
        **({"namespace": namespace} if namespace else {}),
        **({"name": name} if name else {}),
    }
    spec = {
        "user": identity.username,
        "uid": identity.uid,
        "groups": list(identity.groups),
        "extra": {key: list(values) for key, values in identity.extra.items()},
        "resourceAttributes": attributes,
    }
    kind = SUBJECT_ACCESS_REVIEWS
    review = await kube.create(kind, _object(kind.api_version, kind.kind, spec))
    if not (review.get("status") or {}).get("allowed"):
        what = f"{names.JOB_PLURAL}.{names.GROUP}" + (f" {name!r}" if name else "")
        where = f"in namespace {namespace!r}" if namespace else "in all namespaces; ask for one namespace"
        raise forbidden(f"user {identity.username!r} may not {verb} {what} {where}")


def _object(api_version: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "spec": dict(spec)}
