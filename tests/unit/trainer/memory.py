# SPDX-License-Identifier: Apache-2.0
"""A workspace in memory that, like a bucket, has no folder on this machine; it notes what is asked of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kinema_stage.workspace import Workspace


class MemoryWorkspace(Workspace):
    """Files by name."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[tuple[str, int, int]] = []
        """Each range that was read: file, start, end."""
        self.whole: list[str] = []
        """Each file that was read whole."""
        self.uploads: list[str] = []
        """Each file that was uploaded from this machine."""
        self.broken: OSError | None = None
        """What uploads fail with."""

    def uri(self, path: str = "") -> str:
        return f"memory://{path}"

    def exists(self, path: str) -> bool:
        return path in self.files or any(name.startswith(f"{path}/") for name in self.files)

    def read(self, path: str) -> bytes:
        self.whole.append(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def read_range(self, path: str, *, start: int, end: int) -> bytes:
        self.ranges.append((path, start, end))
        return self.files[path][start:end]

    def write(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def create(self, path: str, data: bytes) -> bool:
        return self.files.setdefault(path, data) is data

    def sizes(self, prefix: str) -> dict[str, int]:
        return {name: len(data) for name, data in sorted(self.files.items()) if name.startswith(f"{prefix}/")}

    def delete(self, path: str) -> None:
        for name in [path, *self.sizes(path)]:
            self.files.pop(name, None)

    def sweep(self, path: str) -> None:
        """Nothing is ever half written."""

    @contextlib.contextmanager
    def scratch(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)

    def place(self, scratch: Path, path: str) -> bool:
        if self.exists(path):
            return False
        self.upload(scratch, path)
        return True

    def upload(self, source: Path, path: str) -> None:
        if source.is_dir():
            for file in sorted(child for child in source.rglob("*") if child.is_file()):
                self.upload(file, f"{path}/{file.relative_to(source).as_posix()}")
            return
        if self.broken is not None:
            raise self.broken
        self.uploads.append(path)
        self.files[path] = source.read_bytes()

    def fetch(self, path: str, *names: str) -> Path:
        raise AssertionError(f"{path}: nothing here needs a whole folder")
