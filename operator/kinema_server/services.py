# SPDX-License-Identifier: Apache-2.0
"""What handlers share for the life of the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request

from kinema_api.base import DNS_SUBDOMAIN
from kinema_kube import Kube
from kinema_server.verdicts import Verdicts
from kinema_server.writer import Writer


@dataclass(frozen=True, slots=True)
class Services:
    """The cluster, and what is remembered of it."""

    kube: Kube
    writer: Writer
    verdicts: Verdicts


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


PathName = Annotated[str, Path(max_length=253, pattern=DNS_SUBDOMAIN)]
"""A namespace or a name in a path. Anything else could lead to another object than the one that was authorized."""

Shared = Annotated[Services, Depends(_services)]
