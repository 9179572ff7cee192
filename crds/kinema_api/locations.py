# SPDX-License-Identifier: Apache-2.0
"""Where data lies: `pvc://claim/path` in a job, `file:///path` in a stage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from kinema_api.base import DNS_SUBDOMAIN
from kinema_api.names import VOLUMES_DIR


@dataclass(frozen=True, slots=True)
class Claim:
    """A folder on a PersistentVolumeClaim of the job's namespace."""

    name: str
    path: str


def claim_of(uri: str) -> Claim | None:
    """The claim that a `pvc://` address names; None for any other scheme.

    Raises:
        ValueError: the address names no claim, or leaves it by `..`.
    """
    if not uri.startswith("pvc://"):
        return None
    name, _, path = uri.removeprefix("pvc://").partition("/")
    if not re.match(DNS_SUBDOMAIN, name):
        raise ValueError(f"{uri}: write pvc://CLAIM/PATH, where CLAIM is a PersistentVolumeClaim of the namespace")
    if ".." in PurePosixPath(path).parts:
        raise ValueError(f"{uri}: the path may not contain '..'")
    return Claim(name=name, path=path.strip("/"))


def mount_path(claim: str) -> str:
    """Where a stage's container sees a claim."""
    return f"{VOLUMES_DIR}/{claim}"


def in_container(uri: str) -> str:
    """The address under which a stage's container sees `uri`."""
    claim = claim_of(uri)
    if claim is None:
        return uri
    return f"file://{mount_path(claim.name)}/{claim.path}".rstrip("/")


def for_user(text: str) -> str:
    """Text of a stage with its container's addresses turned back into those of the job."""
    prefix = f"{VOLUMES_DIR}/"
    return text.replace(f"file://{prefix}", "pvc://").replace(prefix, "pvc://")


def join(uri: str, *parts: str) -> str:
    """`uri` with path segments appended."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part)])
