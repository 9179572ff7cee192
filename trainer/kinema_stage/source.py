# SPDX-License-Identifier: Apache-2.0
"""A folder that stages only read: videos or weights, on a volume or in a bucket."""

from __future__ import annotations

import contextlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

from kinema_api.inputs import Location
from kinema_api.keys import digest
from kinema_stage import scratch
from kinema_stage.fingerprint import file_tag, folder_tag
from kinema_stage.parallel import threads
from kinema_stage.workspace import local_path


class Source(ABC):
    """Files by their names relative to the folder. What fails raises OSError."""

    where: str
    """Its address for people."""
    revision: str | None = None
    """The commit that its name stood for, on a hub."""

    @abstractmethod
    def names(self) -> list[str]:
        """Every visible file, sorted. In a bucket, a folder that is not there has none."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def read(self, name: str, *, end: int | None = None) -> bytes:
        """The content of a file, or what stands before `end`.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def tags(self, names: Sequence[str]) -> dict[str, str]:
        """The content tag of each of these files that can be read."""

    @abstractmethod
    def folder_tag(self, *folders: str) -> str:
        """One tag of all that lies in some folders: another one whenever a name or a content is."""

    @abstractmethod
    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """A file on this machine, for as long as it is needed.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def fetch_folders(self, *folders: str) -> Path:
        """The folder on this machine, with at least these files and folders of it; with all when none is named.

        Raises:
            FileNotFoundError: one of them is not there.
        """

    def place(self, name: str) -> str:
        """The address of a file, for people."""
        return f"{self.where}/{name}"


class FolderSource(Source):
    """A folder on a volume."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = str(root)

    def names(self) -> list[str]:
        def fail(error: OSError) -> None:
            raise error

        found: list[str] = []
        for folder, folders, files in os.walk(self.root, onerror=fail):
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = Path(folder).relative_to(self.root)
            found += [(base / name).as_posix() for name in files if not name.startswith(".")]
        return sorted(found)

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def read(self, name: str, *, end: int | None = None) -> bytes:
        with (self.root / name).open("rb") as file:
            return file.read(-1 if end is None else end)

    def tags(self, names: Sequence[str]) -> dict[str, str]:
        def tag(name: str) -> str | None:
            try:
                return file_tag(self.root / name)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
                return None

        return {name: found for name, found in zip(names, threads(tag, names), strict=True) if found is not None}

    def folder_tag(self, *folders: str) -> str:
        return folder_tag(*(self.root / folder for folder in folders))

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        path = self.root / name
        path.stat()
        return contextlib.nullcontext(path)

    def fetch_folders(self, *folders: str) -> Path:
        for folder in folders:
            (self.root / folder).stat()
        return self.root


class ListedSource(Source):
    """A place that is listed once, with what it says of each file: nothing is read for tags."""

    @property
    @abstractmethod
    def _files(self) -> Mapping[str, tuple[int, str]]:
        """Bytes and the place's own tag of the content, by name, sorted."""

    def names(self) -> list[str]:
        return [*self._files]

    def tags(self, names: Sequence[str]) -> dict[str, str]:
        return {name: digest([*self._files[name]]) for name in names if name in self._files}

    def folder_tag(self, *folders: str) -> str:
        return digest(
            [
                [folder, name[len(folder) + 1 :], *found]
                for folder in folders
                for name, found in self._files.items()
                if name.startswith(f"{folder}/")
            ]
        )


class BucketSource(ListedSource):
    """A prefix of a bucket; its ETags are the tags."""

    def __init__(self, location: Location) -> None:
        from kinema_stage.s3 import Store

        self._store = Store(location)
        self.where = self._store.uri()

    @cached_property
    def _files(self) -> Mapping[str, tuple[int, str]]:
        return {
            name: (stored.size, stored.tag)
            for name, stored in self._store.list("").items()
            if not any(part.startswith(".") for part in name.split("/"))
        }

    def size(self, name: str) -> int:
        return self._store.stat(name).size

    def read(self, name: str, *, end: int | None = None) -> bytes:
        return self._store.read(name, end=end)

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="kinema-", dir=scratch.root(), ignore_cleanup_errors=True) as folder:
            # The suffix tells the decoder the container's format.
            path = Path(folder, name.rpartition("/")[2])
            self._store.download(name, path, stored=self._store.stat(name))
            yield path

    def fetch_folders(self, *folders: str) -> Path:
        from kinema_stage.bucket import fetch

        return fetch(self._store, "", folders)


def open_source(location: Location, *, parent: bool = False) -> Source:
    """The folder at an address, or the one in which the address's file lies.

    Raises:
        ValueError: no stage reads such an address.
        StageError: the credentials of a bucket are not there.
    """
    uri = location.uri.rstrip("/")
    if parent:
        uri = uri.rpartition("/")[0]
    if uri.startswith("s3:/"):
        return BucketSource(location.model_copy(update={"uri": uri}))
    return FolderSource(local_path(uri))
