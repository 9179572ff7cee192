# SPDX-License-Identifier: Apache-2.0
"""Local space where a pod keeps copies of what lies in object storage or on a hub."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from kinema_api.exits import Exit, StageError
from kinema_api.names import ENV_SCRATCH, SCRATCH_DIR

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def root(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder, made where it is missing: what the environment names, a pod's own, or the user's cache."""
    named = environment.get(ENV_SCRATCH)
    pod = Path(SCRATCH_DIR)
    folder = Path(named) if named else pod if pod.is_dir() else Path.home() / ".cache" / "kinema" / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process or thread at a time fill a folder, which is made; a killed one lets go."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named_when_full() -> Iterator[None]:
    """Tell a full scratch from a full workspace.

    Raises:
        StageError: there is no space left.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StageError) or error.errno not in _FULL:
            raise
        raise StageError(
            Exit.STORAGE,
            f"the local scratch space {root()} is full; raise podTemplate.scratch of the stage, or {ENV_SCRATCH} must"
            " name a larger disk",
        ) from error
