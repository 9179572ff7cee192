# SPDX-License-Identifier: Apache-2.0
"""Local space where a pod keeps copies of what lies in object storage or on a hub."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from kinema_api.exits import Exit, StageError
from kinema_api.names import ENV_SCRATCH, SCRATCH_DIR
from kinema_stage import pulse

POLL_SECONDS = 0.2
"""Between two looks of who waits for another to fill a folder."""
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
    """Let one process or thread at a time fill a folder, which is made; a killed one lets go.

    Who waits moves as long as who fills does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait(descriptor)
        with pulse.heard(lambda: os.utime(descriptor)):
            yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int) -> None:
    seen = os.fstat(descriptor).st_mtime_ns
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(POLL_SECONDS)
        touched = os.fstat(descriptor).st_mtime_ns
        if touched != seen:
            seen = touched
            pulse.beat()


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
