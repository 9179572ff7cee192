# SPDX-License-Identifier: Apache-2.0
"""The server's settings: a YAML file, camelCase, every field optional."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from kinema_api.base import Model

Port = Annotated[int, Field(ge=0, le=65535)]


class SettingsError(ValueError):
    """The settings file cannot be used."""


class Tuning(Model):
    """What an administrator may choose; the chart's values offer it as `server.settings`."""

    progress_interval_seconds: float = Field(default=15, gt=0, le=3600)
    """Least time between two writes of one job's progress."""
    verdict_seconds: float = Field(default=60, ge=0, le=60)
    """For how long a pod's token, once verified, is trusted without asking again."""
    progress_per_second: float = Field(default=2, gt=0, le=1000)
    """Posts of progress that one pod may send in a second, over a longer time; more are answered by 429."""
    progress_burst: int = Field(default=20, ge=1, le=10_000)
    """Posts of progress that one pod may send at once."""
    review_seconds: float = Field(default=10, ge=0, le=60)
    """For how long a caller's token and rights, once granted, are trusted without asking again; a refusal is for 2 s at
    most."""
    stream_seconds: float = Field(default=3600, gt=0, le=86_400)
    """The longest life of a watch or of a log that is followed; clients go on where they were."""
    reader_idle_seconds: int = Field(default=300, ge=10, le=86_400)
    """For how long a pod that reads a workspace waits for the next request before it ends."""
    reader_wait_seconds: float = Field(default=20, ge=0, le=300)
    """For how long a request waits for such a pod to start."""
    shutdown_seconds: int = Field(default=20, ge=1, le=600)
    """For how long requests under way may go on after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log line to write."""


class ServerSettings(Tuning):
    """How the server runs."""

    host: str = "0.0.0.0"
    """Address to listen on; `::` for IPv6 and IPv4."""
    port: Port = 8443
    """HTTPS: progress and reads. 0 takes a free one."""
    metrics_port: Port = 9090
    """Plain HTTP: Prometheus metrics. 0 serves none."""
    certificate: Path = Path("/etc/kinema/tls/tls.crt")
    """PEM: the server's certificate, then its intermediates. Read again when it changes."""
    key: Path = Path("/etc/kinema/tls/tls.key")
    """PEM: the private key of the certificate."""
    certificate_check_seconds: float = Field(default=10, gt=0, le=3600)
    """How often the two files are looked at."""
    kubeconfig: Path | None = None
    """The cluster; left out, $KUBECONFIG or the pod's own account."""


def load_settings(path: Path | None) -> ServerSettings:
    """Settings of a file; the defaults without one.

    Raises:
        SettingsError: the file cannot be read, or a field is unknown or out of range.
    """
    if path is None:
        return ServerSettings()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    try:
        return ServerSettings.model_validate({} if data is None else data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()]
        raise SettingsError(f"{path}: {'; '.join(faults)}") from error
