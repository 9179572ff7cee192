# SPDX-License-Identifier: Apache-2.0
"""A bucket over HTTP in this process, with a Secret to reach it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from kinema_api.inputs import SecretRef, Storage

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BUCKET, SECRET = "bucket", "s3-keys"


@dataclass(frozen=True)
class ObjectStore:
    """A running store with an empty bucket."""

    port: int
    bucket: str = BUCKET

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def s3(self) -> S3Client:
        """A client of its own, past every proxy."""
        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )

    def empty(self) -> None:
        """Remove every object."""
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for entry in page.get("Contents", []):
                self.s3.delete_object(Bucket=self.bucket, Key=entry["Key"])

    def fill(self, keys: Iterable[str]) -> None:
        """Make many empty objects, without a request for each."""
        for key in keys:
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(self.bucket, key, b"")

    def put(self, folder: Path, prefix: str) -> None:
        """Copy a local folder into the bucket."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.s3.upload_file(str(path), self.bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")

    def keys(self) -> list[str]:
        """Every key of the bucket."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes | None:
        """The content of an object; None when there is none."""
        try:
            return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except self.s3.exceptions.NoSuchKey:
            return None

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every object below a prefix, by its key relative to it."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {entry["Key"][len(prefix) :]: entry["Size"] for page in pages for entry in page.get("Contents", [])}


@contextlib.contextmanager
def object_store(bucket: str = BUCKET) -> Iterator[ObjectStore]:
    """A moto server on a free port, with a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    try:
        store = ObjectStore(port=server.get_host_and_port()[1], bucket=bucket)
        store.s3.create_bucket(Bucket=bucket)
        yield store
    finally:
        server.stop()


def secret(root: Path, name: str = SECRET, **keys: str) -> None:
    """Write a Secret's files as a pod sees them."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in (keys or {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}).items():
        (folder / key).write_text(value + "\n")


def at(url: str, prefix: str) -> dict[str, Any]:
    """Fields of a location in the bucket."""
    return {"uri": f"s3://{BUCKET}/{prefix}".rstrip("/"), "endpoint": url, "secret_ref": SecretRef(name=SECRET)}


def storage(url: str, prefix: str = "work") -> Storage:
    """A workspace in the bucket."""
    return Storage(**at(url, prefix))
