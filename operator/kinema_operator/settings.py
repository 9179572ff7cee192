# SPDX-License-Identifier: Apache-2.0
"""The operator's settings: one YAML file, and a few variables that only a pod knows."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from kinema_api.base import Model
from kinema_operator.observed import Platform

DEFAULT_PATH = Path("/etc/kinema/operator.yaml")
ENV_NAMESPACE = "POD_NAMESPACE"
"""The operator's own namespace, from the downward API; it holds the Lease."""
ENV_IDENTITY = "POD_NAME"
"""Who holds the Lease: a restarted container of the same pod takes over at once."""


class SettingsError(Exception):
    """The settings cannot be used; the message says which line and what to do."""


class Server(Model):
    """Where the server is, and which Secret holds its certificate."""

    url: str = "https://kinema-server.kinema-system.svc"
    """Root of the address that pods post progress to; empty: no progress."""
    namespace: str = "kinema-system"
    """Namespace of the server's Service and Secret."""
    service: str = "kinema-server"
    """The Service: the certificate is made for its names."""
    secret: str = "kinema-server-tls"
    """The Secret with tls.crt, tls.key and ca.crt."""
    brought: bool = False
    """The Secret is the user's own: it is read and never written."""


class Timing(Model):
    """When one of several replicas takes over."""

    lease_seconds: float = Field(default=15, ge=3, le=3600)
    """After so long without renewal another replica takes over."""
    renew_seconds: float = Field(default=10, ge=2, le=3600)
    """After so long without a successful renewal the leader gives up."""
    retry_seconds: float = Field(default=2, gt=0, le=600)
    """Seconds between two attempts."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.retry_seconds < self.renew_seconds < self.lease_seconds:
            raise ValueError(
                f"retrySeconds ({self.retry_seconds:g}) must be below renewSeconds ({self.renew_seconds:g}), and that"
                f" below leaseSeconds ({self.lease_seconds:g}): else two replicas could lead at once"
            )
        return self


class Election(Timing):
    """The Lease that lets one of several replicas work."""

    name: str = "kinema-operator"
    """Name of the Lease."""
    namespace: str = ""
    """Its namespace; the operator's own when left out."""


class Tuning(Model):
    """What an administrator may choose; the chart's values offer it as `operator.settings`."""

    workers: int = Field(default=16, ge=1, le=256)
    """Jobs that are looked at side by side."""
    resync_seconds: float = Field(default=300, ge=5, le=86_400)
    """Seconds between two full comparisons with the API server, for events that were lost."""
    election: Timing = Field(default_factory=Timing)
    """When a replica that stands by takes over."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe lines that are written."""


class Settings(Tuning):
    """The operator's settings."""

    watch_namespaces: list[str] = Field(default_factory=list)
    """Namespaces whose jobs are served; all when empty."""
    images: dict[str, str] = Field(default_factory=dict)
    """Image references: `stage`, and `<family>/<accelerator>` such as `wan2.1/nvidia`."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the job's pods."""
    server: Server = Field(default_factory=Server)
    """The server."""
    election: Election = Field(default_factory=Election)
    """Leader election."""
    metrics_port: int = Field(default=9090, ge=0, le=65_535)
    """Port of /metrics."""
    probe_port: int = Field(default=8081, ge=0, le=65_535)
    """Port of /healthz and /readyz."""

    def platform(self, *, server_ca: str) -> Platform:
        """What `decide` needs to know of the settings."""
        return Platform(
            images=self.images,
            server_url=self.server.url,
            server_ca=server_ca,
            pull_policy=self.image_pull_policy,
        )

    @property
    def lease_namespace(self) -> str:
        """Where the Lease lies."""
        return self.election.namespace or os.environ.get(ENV_NAMESPACE) or self.server.namespace

    @property
    def identity(self) -> str:
        """Who holds the Lease; unique to the pod, or to the process outside of one."""
        return os.environ.get(ENV_IDENTITY) or f"{socket.gethostname()}-{os.getpid()}"


def load(path: Path) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: the file is missing, no YAML, or says something unknown or out of range.
    """
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; name the file by --config") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not YAML: {error}") from None
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors())
        raise SettingsError(f"{path}: {lines}") from None
