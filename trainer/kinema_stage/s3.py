# SPDX-License-Identifier: Apache-2.0
"""Buckets: one client for all that stages read and write there, and one place where its errors become sentences."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from kinema_api.inputs import Location
from kinema_api.locations import bucket_of
from kinema_stage import pulse, secrets
from kinema_stage.faults import code_of, sentence, transient
from kinema_stage.scratch import named_when_full

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

T = TypeVar("T")
_ATTEMPTS = 3
"""Of a whole call; each of its requests is repeated by itself."""
_REQUESTS = 6
_PART = 16 << 20
_TRANSFER = TransferConfig(multipart_threshold=2 * _PART, multipart_chunksize=_PART, max_concurrency=8)
_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": _REQUESTS},
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=64,
    # Stores other than AWS's do not know the newer checksums.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
_WRITER = "kinema-writer"
_CONFLICT = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
_TAKEN = frozenset({"PreconditionFailed", "412"})


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of a bucket."""

    size: int
    tag: str
    """Its ETag: another one whenever the content is another."""
    modified: float
    """Seconds since the epoch."""


class Store:
    """A prefix of a bucket; keys are relative to it.

    Every method raises FileNotFoundError for an object that is not there and `StoreError` for whatever else fails.

    Args:
        location: its address, with how to reach it.

    Raises:
        ValueError: the address names no bucket.
        StageError: the credentials are not there.
    """

    def __init__(self, location: Location) -> None:
        bucket = bucket_of(location.uri)
        if bucket is None:
            raise ValueError(f"{location.uri}: write s3://BUCKET/PREFIX")
        self.location = location
        self.bucket = bucket.name
        self.prefix = bucket.prefix
        self._client = client(location, os.getpid())

    def uri(self, key: str = "") -> str:
        """The address of an object."""
        return f"s3://{self.bucket}/{self.key(key)}".rstrip("/")

    def key(self, path: str) -> str:
        """The whole key of a relative one.

        Raises:
            ValueError: it leaves the prefix.
        """
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path}: a path in the workspace is relative and has no '..'")
        return "/".join(part for part in (self.prefix, path.strip("/")) if part)

    def stat(self, path: str) -> Stored:
        """Size, tag and age of an object."""
        found = self._call(path, lambda: self._client.head_object(Bucket=self.bucket, Key=self.key(path)))
        return Stored(found["ContentLength"], found["ETag"].strip('"'), found["LastModified"].timestamp())

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> bytes:
        """The content of an object, or of a part of it; past its end there is nothing."""
        if end is not None and end <= start:
            return b""
        span: dict[str, Any] = {} if end is None and not start else {"Range": f"bytes={start}-{_last(end)}"}

        def get() -> bytes:
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self.key(path), **span)
            except ClientError as error:
                if error.response["Error"]["Code"] in ("InvalidRange", "416"):
                    return b""
                raise
            with contextlib.closing(answer["Body"]) as body:
                data = body.read()
            if span:
                # Large tensors are read in pieces.
                pulse.beat()
            return data

        return self._call(path, get)

    def write(self, path: str, data: bytes) -> None:
        """Put an object in place."""
        self._call(path, lambda: self._client.put_object(Bucket=self.bucket, Key=self.key(path), Body=data))

    def create(self, path: str, data: bytes) -> bool:
        """Put an object in place unless there is one; of many callers exactly one gets True."""
        writer = uuid.uuid4().hex

        def put() -> bool:
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=self.key(path), Body=data, IfNoneMatch="*", Metadata={_WRITER: writer}
                )
            except ClientError as error:
                if error.response["Error"]["Code"] not in _TAKEN:
                    raise
                # A put whose answer was lost is sent again and meets itself.
                return self._written_by(path, writer)
            return True

        return self._call(path, put)

    def list(self, path: str) -> dict[str, Stored]:
        """Every object below a folder, by its relative key, sorted."""
        folder = f"{self.key(path)}/" if self.key(path) else ""
        cut = len(self.prefix) + 1 if self.prefix else 0

        def pages() -> dict[str, Stored]:
            found: dict[str, Stored] = {}
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder):
                for entry in page.get("Contents", []):
                    stored = Stored(entry["Size"], entry["ETag"].strip('"'), entry["LastModified"].timestamp())
                    found[entry["Key"][cut:]] = stored
            return found

        # Consoles leave an empty object NAME/ for a folder.
        return dict(sorted((key, stored) for key, stored in self._call(path, pages).items() if not key.endswith("/")))

    def has_below(self, path: str) -> bool:
        """Whether there is an object below a folder."""
        folder = f"{self.key(path)}/" if self.key(path) else ""
        return bool(
            self._call(path, lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=folder, MaxKeys=1)).get(
                "Contents"
            )
        )

    def delete(self, path: str) -> None:
        """Remove an object; a missing one is fine."""
        self._call(path, lambda: self._client.delete_object(Bucket=self.bucket, Key=self.key(path)))

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file, in parts where it is large; it appears at once."""
        self._call(
            path,
            lambda: self._client.upload_file(
                str(source), self.bucket, self.key(path), Config=_TRANSFER, Callback=_moved
            ),
        )

    def download(self, path: str, target: Path, *, stored: Stored) -> None:
        """Copy an object into a local file, which appears at once and has the object's age.

        Raises:
            StageError: it has another size, or the local disk is full.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".kinema-tmp-{uuid.uuid4().hex}"
        try:
            with named_when_full():
                self._call(
                    path,
                    lambda: self._client.download_file(
                        self.bucket, self.key(path), str(temporary), Config=_TRANSFER, Callback=_moved
                    ),
                )
                if temporary.stat().st_size != stored.size:
                    raise OSError(errno.ESTALE, f"{self.uri(path)} changed while it was read")
                os.utime(temporary, (stored.modified, stored.modified))
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _written_by(self, path: str, writer: str) -> bool:
        try:
            head = self._client.head_object(Bucket=self.bucket, Key=self.key(path))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return False
            raise
        return head["Metadata"].get(_WRITER) == writer

    def _call(self, path: str, work: Callable[[], T]) -> T:
        """`work`, again after what may pass: bodies that break off, uploads whose last answer was lost."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return work()
            except (ClientError, BotoCoreError, S3UploadFailedError) as error:
                if isinstance(error, ClientError) and code_of(error) in ("NoSuchKey", "404"):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.uri(path)) from None
                again = transient(error) or (isinstance(error, ClientError) and code_of(error) in _CONFLICT)
                if attempt == _ATTEMPTS or not again:
                    raise sentence(error, location=self.location, bucket=self.bucket, address=self.uri(path)) from error
                logger.debug("%s: %s; trying again", self.uri(path), error)
        raise AssertionError("the last attempt returns or raises")


@lru_cache(maxsize=16)
def client(location: Location, process: int) -> S3Client:
    """The client of a location; boto3's are safe between threads, but not between processes.

    Raises:
        StageError: the credentials are not there.
    """
    keys = secrets.read(location, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    by_path = location.path_style if location.path_style is not None else location.endpoint is not None
    session = boto3.session.Session()
    return session.client(
        "s3",
        endpoint_url=location.endpoint,
        region_name=location.region or session.region_name or "us-east-1",
        verify=secrets.certificates(location),
        aws_access_key_id=keys.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=keys.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=keys.get("AWS_SESSION_TOKEN"),
        config=_CONFIG.merge(Config(s3={"addressing_style": "path" if by_path else "auto"})),
    )


def open_store(location: Location) -> Store:
    """The prefix of a bucket that a location names; not more is asked than whether there are credentials."""
    return Store(location)


def _moved(count: int) -> None:
    """A part of a file was sent or received, or is sent again."""
    pulse.beat()


def _last(end: int | None) -> str:
    return "" if end is None else str(end - 1)
