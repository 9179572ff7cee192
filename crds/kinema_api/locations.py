# SPDX-License-Identifier: Apache-2.0
"""Where data lies: `pvc://claim/path` in a job, `file:///path` in a stage, `s3://` and `hf://` in both."""

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


@dataclass(frozen=True, slots=True)
class Bucket:
    """A prefix of an S3 bucket."""

    name: str
    prefix: str


_BUCKET = "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_REPOSITORY = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"

# The same for the API server, which reads them as RE2.
PVC_ADDRESS = "pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?"
S3_ADDRESS = f"s3://{_BUCKET}(/.*)?"
HF_ADDRESS = f"hf://{_REPOSITORY}/*"
LEAVES_ITS_ROOT = "^pvc://.*/[.][.](/|$)|^s3://.*/[.][.]?(/|$)|^s3://[^/]+/.*[^/]//+[^/]"
"""Addresses whose path has parts that no stage follows: `..`, and in a bucket also `.` and empty ones."""


def bucket_of(uri: str) -> Bucket | None:
    """The prefix that an `s3://` address names; None for any other scheme.

    Raises:
        ValueError: the address names no bucket, or has empty parts or `..` in its path.
    """
    if not uri.startswith("s3://"):
        return None
    name, _, path = uri.removeprefix("s3://").partition("/")
    if not re.fullmatch(_BUCKET, name):
        raise ValueError(f"{uri}: write s3://BUCKET/PREFIX; a bucket's name has 3 to 63 of a-z, 0-9, '.' and '-'")
    prefix = path.strip("/")
    if prefix and {"", ".", ".."} & set(prefix.split("/")):
        raise ValueError(f"{uri}: the path may contain neither '//' nor '.' or '..'")
    return Bucket(name=name, prefix=prefix)


def repository_of(uri: str) -> str | None:
    """The repository of Hugging Face's hub that an `hf://` address names; None for any other scheme.

    Raises:
        ValueError: the address names no repository.
    """
    if not uri.startswith("hf://"):
        return None
    name = uri.removeprefix("hf://").rstrip("/")
    if not re.fullmatch(_REPOSITORY, name):
        raise ValueError(f"{uri}: write hf://ORGANISATION/REPOSITORY; a commit goes into revision")
    return name


def check_address(uri: str) -> None:
    """Refuse an address that no stage could open.

    Raises:
        ValueError: with what to write.
    """
    if claim_of(uri) is None and bucket_of(uri) is None:
        repository_of(uri)


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
