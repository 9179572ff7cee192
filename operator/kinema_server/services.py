# SPDX-License-Identifier: Apache-2.0
"""What handlers share for the life of the process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Request

from kinema_api.base import DNS_SUBDOMAIN
from kinema_kube import Kube
from kinema_server.feeds import Feeds
from kinema_server.readers import Readers
from kinema_server.reviews import Reviews
from kinema_server.settings import ServerSettings
from kinema_server.verdicts import Verdicts
from kinema_server.writer import Writer


@dataclass(frozen=True, slots=True)
class Services:
    """The cluster, and what is remembered of it."""

    settings: ServerSettings
    kube: Kube
    writer: Writer
    verdicts: Verdicts
    reviews: Reviews
    feeds: Feeds
    readers: Readers
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server goes down: what goes on for long ends."""


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


# Anything but a name could lead to another object than the one that was authorized.
Namespace = Annotated[
    str, Path(max_length=253, pattern=DNS_SUBDOMAIN, description="A namespace of the cluster.", examples=["team"])
]
JobName = Annotated[str, Path(max_length=253, pattern=DNS_SUBDOMAIN, description="A job's name.", examples=["wan"])]

Shared = Annotated[Services, Depends(_services)]
