# SPDX-License-Identifier: Apache-2.0
"""The workspace: the one root that stages read and write, a folder on a shared volume or a prefix of a bucket."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

from kinema_api.inputs import Storage

_TEMPORARY = ".kinema-tmp-"
_COPY_BYTES = 4 << 20


class Workspace(ABC):
    """A root under which every name is a relative path with forward slashes.

    A file is either absent or complete. Names may be read while others write; nothing here locks. What fails raises
    OSError; in a bucket that is a `kinema_stage.s3.StoreError`, which says what to do.
    """

    folder: Path | None = None
    """Its root, where it lies on a volume."""

    @abstractmethod
    def uri(self, path: str = "") -> str:
        """The address of a file or folder."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def read_range(self, path: str, *, start: int, end: int) -> bytes:
        """The bytes of a file from `start` up to, and without, `end`; fewer where it ends before.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Put a file in place, whether or not one was there."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Put a file in place unless one is there; of many callers exactly one gets True."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path in the workspace, sorted; half-written ones are left out."""

    def list(self, prefix: str) -> list[str]:
        """Every file below a folder, relative to the workspace, sorted; files being written are left out."""
        return [*self.sizes(prefix)]

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file or a whole folder; a missing one is fine. Nobody takes half of one for an artifact."""

    @abstractmethod
    def sweep(self, path: str) -> None:
        """Remove what killed writers and deleters left in a folder; only for who alone writes there."""

    @abstractmethod
    def scratch(self, path: str) -> AbstractContextManager[Path]:
        """An empty local folder to fill before `place`; removed at the end unless it was placed.

        Only one caller at a time may work on a folder of the workspace.
        """

    @abstractmethod
    def place(self, scratch: Path, path: str) -> bool:
        """Put a filled scratch folder in place, whole, unless a folder is there; its manifest appears last."""

    def renew(self, path: str) -> None:  # noqa: B027  # age counts on volumes alone: `kinema gc` takes no bucket
        """Make a file as young as if it were written now; `kinema gc` spares what is young."""

    @abstractmethod
    def upload(self, source: Path, path: str) -> None:
        """Copy a local file or folder; each file appears at once."""

    @abstractmethod
    def fetch(self, path: str, *names: str) -> Path:
        """A local folder with the content of a folder that does not change any more; only for reading.

        Args:
            path: the folder.
            names: which of its files and folders are needed; all when left out.

        Raises:
            FileNotFoundError: the folder, or one of the names, is not there.
        """


class FolderWorkspace(Workspace):
    """A workspace on a volume: writers fill a hidden temporary file and move it into place.

    Args:
        uri: `file:///folder`. The folder is made by the first write.
    """

    def __init__(self, uri: str) -> None:
        self._root = self.folder = local_path(uri)

    def uri(self, path: str = "") -> str:
        return f"file://{self.local(path)}"

    def local(self, path: str) -> Path:
        """The path on this machine.

        Raises:
            ValueError: the path leaves the workspace.
        """
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"{path}: a path in the workspace is relative and has no '..'")
        return self._root / pure

    def exists(self, path: str) -> bool:
        return self.local(path).exists()

    def read(self, path: str) -> bytes:
        return self.local(path).read_bytes()

    def read_range(self, path: str, *, start: int, end: int) -> bytes:
        with self.local(path).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def write(self, path: str, data: bytes) -> None:
        target = self.local(path)
        with _temporary(target, lambda file: file.write_bytes(data)) as temporary:
            temporary.replace(target)
        _sync_folder(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        target = self.local(path)
        with _temporary(target, lambda file: file.write_bytes(data)) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                # An NFS client that lost the server's answer sends link(2) again and hears "exists" of its own link.
                if os.stat(temporary).st_nlink != 2:
                    return False
        _sync_folder(target.parent)
        return True

    def sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for folder, folders, files in os.walk(self.local(prefix)):
            folders[:] = [name for name in folders if not name.startswith(_TEMPORARY)]
            base = Path(folder).relative_to(self._root)
            for name in files:
                # A file may go while others are listed.
                with contextlib.suppress(FileNotFoundError):
                    if not name.startswith(_TEMPORARY):
                        found[(base / name).as_posix()] = os.stat(Path(folder, name)).st_size
        return dict(sorted(found.items()))

    def delete(self, path: str) -> None:
        target = self.local(path)
        if not target.is_dir() or target.is_symlink():
            target.unlink(missing_ok=True)
            return
        # A folder vanishes at once, so that nobody sees half of it.
        doomed = target.parent / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex}"
        try:
            target.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed)

    def sweep(self, path: str) -> None:
        for left in self.local(path).glob(f"{_TEMPORARY}*"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def scratch(self, path: str) -> Iterator[Path]:
        # What killed processes left of the same folder, half written or half deleted, goes first.
        target = self.local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{_TEMPORARY}{glob.escape(target.name)}-*"):
            shutil.rmtree(left)
        folder = target.parent / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def place(self, scratch: Path, path: str) -> bool:
        target = self.local(path)
        try:
            scratch.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        _sync_folder(target.parent)
        return True

    def renew(self, path: str) -> None:
        # A job of another user may be able to read it only.
        with contextlib.suppress(PermissionError):
            os.utime(self.local(path))

    def upload(self, source: Path, path: str) -> None:
        if source.is_dir():
            for file in sorted(child for child in source.rglob("*") if child.is_file()):
                self.upload(file, f"{path}/{file.relative_to(source).as_posix()}")
            return
        target = self.local(path)
        with _temporary(target, lambda file: _copy(source, file)) as temporary:
            temporary.replace(target)
        _sync_folder(target.parent)

    def fetch(self, path: str, *names: str) -> Path:
        folder = self.local(path)
        for needed in (folder, *(folder / name for name in names)):
            if not needed.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(needed))
        return folder


def open_workspace(storage: Storage) -> Workspace:
    """The workspace at an address.

    Raises:
        ValueError: it is no address of a workspace.
        StageError: the credentials of a bucket are not there.
    """
    if storage.uri.startswith("s3://"):
        # boto3 is heavy, and most workspaces do without.
        from kinema_stage.bucket import BucketWorkspace

        return BucketWorkspace(storage)
    return FolderWorkspace(storage.uri)


def local_path(uri: str) -> Path:
    """The path that a `file://` address names.

    Raises:
        ValueError: it is another scheme, or not absolute.
    """
    path = uri.removeprefix("file://")
    if path == uri or not path.startswith("/"):
        raise ValueError(f"{uri}: write file:///an/absolute/path")
    return Path(path)


@contextlib.contextmanager
def _temporary(target: Path, fill: Callable[[Path], object]) -> Iterator[Path]:
    """A complete, synced file beside `target`; whatever is left of it at the end is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    try:
        fill(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _COPY_BYTES)


def _sync_folder(folder: Path) -> None:
    """Make a rename or link durable, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
