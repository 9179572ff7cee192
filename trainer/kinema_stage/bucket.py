# SPDX-License-Identifier: Apache-2.0
"""A workspace in a bucket."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kinema_api.inputs import Location, Storage
from kinema_stage import scratch
from kinema_stage.parallel import threads
from kinema_stage.s3 import Store, Stored
from kinema_stage.workspace import Workspace

_MANIFEST = "_SUCCESS.json"


class BucketWorkspace(Workspace):
    """A workspace under a prefix of a bucket.

    An object is either absent or complete by nature. What killed uploads leave of large ones is invisible; the
    bucket's rule for incomplete multipart uploads clears it.

    Args:
        storage: its address, with how to reach it.

    Raises:
        StageError: the credentials are not there.
    """

    def __init__(self, storage: Storage) -> None:
        self._store = Store(storage)

    def uri(self, path: str = "") -> str:
        return self._store.uri(path)

    def exists(self, path: str) -> bool:
        if self._store.has_below(path):
            return True
        try:
            self._store.stat(path)
        except FileNotFoundError:
            return False
        return True

    def read(self, path: str) -> bytes:
        return self._store.read(path)

    def read_range(self, path: str, *, start: int, end: int) -> bytes:
        return self._store.read(path, start=start, end=end)

    def write(self, path: str, data: bytes) -> None:
        self._store.write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        return self._store.create(path, data)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {path: stored.size for path, stored in self._store.list(prefix).items()}

    def delete(self, path: str) -> None:
        # The manifest goes first, so that nobody takes half a folder for a complete artifact.
        self._store.delete(f"{path}/{_MANIFEST}")
        threads(self._store.delete, [path, *self._store.list(path)])

    def sweep(self, path: str) -> None:
        """Nothing: half-written objects are not there."""

    @contextlib.contextmanager
    def scratch(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="kinema-", dir=scratch.root(), ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def place(self, scratch: Path, path: str) -> bool:
        if self._store.has_below(path):
            return False
        files = [file for file in sorted(scratch.rglob("*")) if file.is_file() and file != scratch / _MANIFEST]
        for file in files:
            self._store.upload(file, f"{path}/{file.relative_to(scratch).as_posix()}")
        if not (scratch / _MANIFEST).is_file():
            return True
        return self._store.create(f"{path}/{_MANIFEST}", (scratch / _MANIFEST).read_bytes())

    def upload(self, source: Path, path: str) -> None:
        if not source.is_dir():
            self._store.upload(source, path)
            return
        for file in sorted(child for child in source.rglob("*") if child.is_file()):
            self._store.upload(file, f"{path}/{file.relative_to(source).as_posix()}")

    def fetch(self, path: str, *names: str) -> Path:
        return fetch(self._store, path, names)


def fetch(store: Store, path: str, names: Sequence[str] = ()) -> Path:
    """A local copy of a folder of a bucket, or of some of its files and folders, shared by the processes of a pod.

    Raises:
        FileNotFoundError: the folder, or one of the names, is not there.
    """
    below = f"{path}/" if path else ""
    found = {key[len(below) :]: stored for key, stored in store.list(path).items()}
    for name in names or ("",):
        if not any(_within(file, name) for file in found):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), store.uri(f"{below}{name}"))
    wanted = {file: stored for file, stored in found.items() if any(_within(file, name) for name in names or ("",))}
    folder = cache(store.location, store.uri(path))

    def complete(file: str) -> None:
        if not _same(folder / file, wanted[file]):
            store.download(f"{below}{file}", folder / file, stored=wanted[file])

    with scratch.locked(folder.parent):
        for file in wanted:
            complete(file)
    return folder


def cache(location: Location, uri: str) -> Path:
    """Where the local copy of a folder lies."""
    digest = hashlib.sha256(f"{location.endpoint or ''} {uri}".encode()).hexdigest()[:20]
    return scratch.root() / "cache" / digest / (uri.rpartition("/")[2] or "root")


def _within(file: str, name: str) -> bool:
    return not name or file == name or file.startswith(f"{name.rstrip('/')}/")


def _same(file: Path, stored: Stored) -> bool:
    """Whether a local copy is that of the object as it is now: copies bear the object's size and age."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return found.st_size == stored.size and abs(found.st_mtime - stored.modified) < 0.001
