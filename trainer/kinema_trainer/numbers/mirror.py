# SPDX-License-Identifier: Apache-2.0
"""Growing files of a run whose workspace is a bucket, where no file can be appended to.

They grow in local scratch and are uploaded whole when they have changed: every so often, and when somebody asks. A kill
loses what was written since; the checkpoints ask before they are published, so that a run never goes on from a step
that its log lacks.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kinema_stage import scratch
from kinema_stage.workspace import Workspace

logger = logging.getLogger(__name__)

SECONDS = 15.0
"""Between two uploads."""
_SHARE = 0.05
"""Most of the time that uploads may take; large logs are uploaded less often."""


class Mirror:
    """A local folder that is copied into a folder of the workspace.

    Args:
        workspace: where to.
        folder: the folder of the workspace.
        kept: files of it that go on growing; they are downloaded first.
        seconds: between two uploads in the background.
    """

    def __init__(self, workspace: Workspace, folder: str, *, kept: Sequence[str], seconds: float = SECONDS) -> None:
        self._workspace = workspace
        self._folder = folder
        self._seconds = seconds
        self._holder = tempfile.TemporaryDirectory(prefix="kinema-log-", dir=scratch.root())
        self.local = Path(self._holder.name)
        """Where the files grow."""
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        for name in kept:
            self._download(name)
        self._thread = threading.Thread(target=self._run, name="log upload", daemon=True)
        self._thread.start()

    def upload(self) -> None:
        """Copy what has changed, now.

        Raises:
            OSError: the workspace does not take it.
        """
        with self._lock:
            for path in sorted(self.local.rglob("*")):
                state = _state(path)
                if path.is_file() and self._uploaded.get(path) != state:
                    self._workspace.upload(path, f"{self._folder}/{path.relative_to(self.local).as_posix()}")
                    self._uploaded[path] = state

    def close(self) -> None:
        """Copy the rest, and remove the local folder."""
        self._stop.set()
        self._thread.join()
        try:
            self.upload()
        except OSError as error:
            # Every checkpoint has its steps logged already: no reason to fail a run that is trained to its end.
            logger.error("the last lines of %s are lost: %s", self._workspace.uri(self._folder), error)
        self._holder.cleanup()

    def _download(self, name: str) -> None:
        try:
            data = self._workspace.read(f"{self._folder}/{name}")
        except FileNotFoundError:
            return
        path = self.local / name
        path.write_bytes(data)
        self._uploaded[path] = _state(path)

    def _run(self) -> None:
        pause = self._seconds
        while not self._stop.wait(pause):
            began = time.monotonic()
            try:
                self.upload()
            except OSError as error:
                logger.warning("the run's log is not uploaded now: %s", error)
            pause = max(self._seconds, (time.monotonic() - began) / _SHARE)


def _state(path: Path) -> tuple[int, int]:
    """Changes whenever the file does; taken before an upload, so that what is written meanwhile counts as new."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
