# SPDX-License-Identifier: Apache-2.0
"""Where torch's distributed checkpoint (DCP) reads and writes: a folder as it is, or a prefix of a bucket.

In a bucket a process writes each of its files into local scratch and uploads it when it is whole; it reads only the
byte ranges of the tensors that it needs, neighbours in one request, the next request ahead of its use.

Every process takes the digest of its files as it writes them; the leader's writer knows them all in the end.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemBase, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture

from kinema_stage import scratch
from kinema_stage.workspace import FolderWorkspace, Workspace
from kinema_trainer.checkpoints.digests import new_digest
from kinema_trainer.checkpoints.ranges import Span, joined

JOIN_BYTES = 64 << 20
"""Neighbouring tensors are read together up to so many bytes."""
_DIGESTS = "kinema.digests"
"""The name under which a process's digests travel to the leader, among the results of its writes."""


def writer(workspace: Workspace, folder: str, *, moved: Callable[[int], None]) -> CheckpointWriter:
    """What writes a checkpoint.

    Args:
        workspace: where to.
        folder: the checkpoint, relative to the workspace.
        moved: hears how many more bytes were written into scratch, where the workspace is a bucket; from any thread.
    """
    if isinstance(workspace, FolderWorkspace):
        path = workspace.local(folder)
        path.mkdir(parents=True, exist_ok=True)
        return CheckpointWriter(path, FolderFiles())
    # Scratch is not meant to outlive the pod: nothing there is synced to its disk.
    return CheckpointWriter(folder, BucketFiles(workspace, moved), sync_files=False)


def reader(workspace: Workspace, folder: str) -> FileSystemReader:
    """What reads a checkpoint."""
    if isinstance(workspace, FolderWorkspace):
        return FileSystemReader(workspace.local(folder))
    return _BucketReader(workspace, folder)


class CheckpointWriter(FileSystemWriter):
    """Writes one file a process.

    Args:
        path: the checkpoint, as `files` names it.
        files: where to.
        sync_files: whether files reach the disk before they count.
    """

    def __init__(
        self, path: str | os.PathLike[str], files: FolderFiles | BucketFiles, *, sync_files: bool = True
    ) -> None:
        super().__init__(".", single_file_per_rank=True, sync_files=sync_files, thread_count=1)
        self.fs: Any = files
        self.path = files.init_path(path)
        self.digests: dict[str, str] = {}
        """Of every file of every process, by name; only the leader knows them, once all is written."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """Write this process's tensors."""
        results = super().write_data(plan, planner).value()
        digests = WriteResult(index=MetadataIndex(_DIGESTS), size_in_bytes=0, storage_data=dict(self.fs.digests))
        done: TorchFuture[list[WriteResult]] = TorchFuture()
        done.set_result([*results, digests])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the metadata; called in the leader."""
        written: list[list[WriteResult]] = []
        for part in results:
            written.append([result for result in part if result.index.fqn != _DIGESTS])
            for result in part:
                self.digests |= result.storage_data if result.index.fqn == _DIGESTS else {}
        super().finish(metadata, written)
        self.digests |= self.fs.digests

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return isinstance(checkpoint_id, str | os.PathLike)


class _Heard(io.FileIO):
    """A file that tells what is written to it, from its beginning to its end."""

    def __init__(self, file: int | Path, hear: Callable[[memoryview], None]) -> None:
        super().__init__(file, "w", closefd=isinstance(file, Path))
        self._hear = hear

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._hear(memoryview(data).cast("B")[:count])
        return count


class FolderFiles(FileSystem):
    """Files on this machine or a volume."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        """Of each file that was written, by its last name."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """A file to read, or to write from its beginning to its end."""
        if "r" in mode:
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        digest = new_digest()
        with io.BufferedWriter(_Heard(Path(path), digest.update)) as stream:
            yield stream
        self.digests[Path(path).name] = digest.hexdigest()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Move a file; its digest goes with it."""
        super().rename(path, new_path)
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)


class BucketFiles(FileSystemBase):
    """The few file operations that DCP needs; paths are relative to the workspace."""

    def __init__(self, workspace: Workspace, moved: Callable[[int], None]) -> None:
        self._workspace = workspace
        self._moved = moved
        self.digests: dict[str, str] = {}
        """Of each file that was written, by its last name."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """A file to read from the bucket whole, or to write into it when it is closed without an error."""
        name = os.fspath(path)
        if "r" in mode:
            yield io.BytesIO(self._workspace.read(name))
            return
        digest = new_digest()

        def hear(data: memoryview) -> None:
            digest.update(data)
            self._moved(len(data))

        # A file without a name: a killed process leaves nothing in scratch.
        with tempfile.TemporaryFile(dir=scratch.root()) as file:
            with io.BufferedWriter(_Heard(file.fileno(), hear)) as stream:
                yield stream
            self._workspace.upload(Path(f"/proc/self/fd/{file.fileno()}"), name)
        self.digests[Path(name).name] = digest.hexdigest()

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{os.fspath(path)}/{suffix}"

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Move a small file; a bucket knows no rename."""
        self._workspace.write(os.fspath(new_path), self._workspace.read(os.fspath(path)))
        self.rm_file(path)
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Nothing: a bucket has no folders."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return isinstance(checkpoint_id, str)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return self._workspace.exists(os.fspath(path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._workspace.delete(os.fspath(path))


class _BucketReader(FileSystemReader):
    def __init__(self, workspace: Workspace, folder: str) -> None:
        super().__init__(".")
        self._workspace = workspace
        self.fs: Any = BucketFiles(workspace, lambda count: None)
        self.path = self.fs.init_path(folder)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """Fill the planner's tensors, in the order in which they lie in each file."""
        places = {item.storage_index: self.storage_data[item.storage_index] for item in plan.items}
        items = sorted(
            plan.items, key=lambda item: (places[item.storage_index].relative_path, places[item.storage_index].offset)
        )
        spans: dict[str, list[Span]] = {}
        for place in places.values():
            spans.setdefault(place.relative_path, []).append(Span(place.offset, place.offset + place.length))
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-read") as pool:
            self.fs = _RangedFiles(self._workspace, os.fspath(self.path), spans, pool)
            return super().read_data(dataclasses.replace(plan, items=items), planner)

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        return cast(IO[bytes], io.BytesIO(file.take(Span(sinfo.offset, sinfo.offset + sinfo.length))))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return BucketFiles.validate_checkpoint_id(checkpoint_id)


class _RangedFiles(BucketFiles):
    """The files of one checkpoint, of which only some spans are wanted."""

    def __init__(
        self, workspace: Workspace, folder: str, spans: dict[str, list[Span]], pool: ThreadPoolExecutor
    ) -> None:
        super().__init__(workspace, lambda count: None)
        self._spans = {f"{folder}/{name}": wanted for name, wanted in spans.items()}
        self._pool = pool

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        name = os.fspath(path)

        def read(span: Span) -> bytes:
            return self._workspace.read_range(name, start=span.start, end=span.end)

        pieces = _Pieces(read, joined(self._spans[name], limit=JOIN_BYTES), self._pool)
        try:
            yield cast(io.IOBase, pieces)
        finally:
            pieces.close()


class _Pieces:
    """Spans of a file, read in order, one ahead."""

    def __init__(self, read: Callable[[Span], bytes], spans: Sequence[Span], pool: ThreadPoolExecutor) -> None:
        self._read = read
        self._pool = pool
        self._waiting = iter(spans)
        self._span = Span(0, 0)
        self._data = b""
        self._ahead = self._next()

    def take(self, span: Span) -> bytes:
        """The bytes of a span, which lies in the present piece or a later one."""
        while span.end > self._span.end:
            assert self._ahead is not None, span
            self._span, future = self._ahead
            self._data = future.result()
            self._ahead = self._next()
        return self._data[span.start - self._span.start : span.end - self._span.start]

    def close(self) -> None:
        """Forget what was read ahead."""
        if self._ahead is not None:
            self._ahead[1].cancel()

    def _next(self) -> tuple[Span, Future[bytes]] | None:
        span = next(self._waiting, None)
        return None if span is None else (span, self._pool.submit(self._read, span))
