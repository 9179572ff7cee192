# SPDX-License-Identifier: Apache-2.0
"""Content tags: cheap digests of large files, the same on every machine.

A tag covers a file's size, its first and its last MiB. An edit that keeps the size and both ends goes unseen; what a
full read of terabytes would add is not worth its hours before each job.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kinema_api.keys import digest
from kinema_stage.parallel import threads

_EDGE = 1 << 20


def file_tag(path: Path) -> str:
    """The tag of one file; a file of up to 2 MiB is covered whole.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        tag = hashlib.blake2b(f"{size}:".encode(), digest_size=16)
        tag.update(file.read(_EDGE))
        if size > _EDGE:
            file.seek(max(_EDGE, size - _EDGE))
            tag.update(file.read(_EDGE))
    return tag.hexdigest()


def folder_tag(*folders: Path) -> str:
    """The tag of every visible file of some folders, by folder name, file name, size and content."""
    files = [(folder, file) for folder in folders for file in sorted(folder.rglob("*")) if _counts(folder, file)]
    tags = threads(file_tag, [file for _, file in files])
    return digest(
        [
            [folder.name, file.relative_to(folder).as_posix(), file.stat().st_size, tag]
            for (folder, file), tag in zip(files, tags, strict=True)
        ]
    )


def _counts(folder: Path, file: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
