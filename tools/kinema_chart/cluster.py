# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes itself defines, as far as values name it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kinema_api.base import Model

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

Amount = Annotated[str, Field(pattern=_QUANTITY)] | int | float
Object = dict[str, Any]
"""An object whose fields the API server checks."""
Port = Annotated[int, Field(ge=1, le=65_535)]
Strings = dict[str, str]
Namespace = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
SecretName = Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]
Hostname = Annotated[str, Field(max_length=253, pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Duration = Annotated[str, Field(pattern=r"^([0-9]+(ms|h|m|s))+$")]
Image = Annotated[str, Field(min_length=1, pattern=r"^\S+$")]


class Resources(Model):
    """What a container asks for and may take."""

    requests: dict[str, Amount] = Field(default_factory=dict)
    """What is set aside for it."""
    limits: dict[str, Amount] = Field(default_factory=dict)
    """What it may take at most."""


class Toleration(Model):
    """A taint that is tolerated."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: int | None = None


class Peer(Model):
    """A peer of a NetworkPolicy."""

    pod_selector: Object | None = None
    namespace_selector: Object | None = None
    ip_block: Object | None = None


class ParentRef(Model):
    """The Gateway that a route hangs on."""

    name: str = Field(min_length=1)
    namespace: str | None = None
    section_name: str | None = None
    port: Port | None = None
    group: str | None = None
    kind: str | None = None
