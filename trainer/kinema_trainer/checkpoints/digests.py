# SPDX-License-Identifier: Apache-2.0
"""Digests of files' contents."""

from __future__ import annotations

import hashlib

from kinema_stage import pulse
from kinema_stage.workspace import Workspace

_READ_BYTES = 16 << 20


def new_digest() -> hashlib.blake2b:
    """What a file's digest is taken with; other threads run while it takes in a large piece."""
    return hashlib.blake2b(digest_size=16)


def file_digest(workspace: Workspace, path: str, *, size: int) -> str | None:
    """The digest of a file's first `size` bytes; None where there is no such file, or it is shorter."""
    digest = new_digest()
    start = 0
    try:
        while start < size:
            data = workspace.read_range(path, start=start, end=min(size, start + _READ_BYTES))
            if not data:
                return None
            digest.update(data)
            start += len(data)
            pulse.beat()
    except FileNotFoundError:
        return None
    return digest.hexdigest()
