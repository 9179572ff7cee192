# SPDX-License-Identifier: Apache-2.0
"""What local runs leave in the user's state folder: configs and logs of attempts, and which artifacts they refer to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from kinema_api.base import Model
from kinema_api.inputs import Storage
from kinema_api.names import Stage
from kinema_cli.course import Course
from kinema_cli.errors import CommandError

_RECORD = "job.json"


class Record(Model):
    """One local job."""

    namespace: str
    name: str
    folder: str
    """Its private folder in the workspace."""
    storage: Storage
    """Its workspace."""
    keys: dict[str, str] = Field(default_factory=dict)
    """The artifacts that it refers to; empty until its check has run."""


def root(environment: Mapping[str, str]) -> Path:
    """The state folder of all local jobs."""
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(base) / "kinema"


class Folder:
    """The state of one local job."""

    def __init__(self, state: Path, course: Course) -> None:
        self._course = course
        self.path = state / course.folder.removeprefix("jobs/").replace("/", "-")

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the job for this process and what it starts; the file descriptor of the lock.

        Raises:
            CommandError: another run holds it, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CommandError(f"{self.path} cannot be written ({error.strerror}): name another by --state") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"{self._course.job.name} runs on this machine already, see its logs in {self.path}"
            ) from None
        else:
            yield descriptor
        finally:
            os.close(descriptor)

    def attempt(self, stage: Stage) -> int:
        """The number of the stage's next attempt."""
        taken = [int(path.stem.rpartition("-")[2]) for path in self.path.glob(f"{stage}-*.log")]
        return max(taken, default=0) + 1

    def file(self, stage: Stage, attempt: int, kind: str) -> Path:
        """A file of an attempt: config (json), log or termination."""
        return self.path / f"{stage}-{attempt}.{kind}"

    def secrets(self, folders: Mapping[str, Path]) -> Path:
        """The folder in which each Secret has one, as in a pod."""
        place = self.path / "secrets"
        place.mkdir(exist_ok=True)
        for link in place.iterdir():
            link.unlink()
        for name, folder in folders.items():
            (place / name).symlink_to(folder)
        return place

    def write(self, keys: Mapping[str, str]) -> None:
        """Remember what the job refers to."""
        record = Record(
            namespace=self._course.job.namespace,
            name=self._course.job.name,
            folder=self._course.folder,
            storage=self._course.spec.storage,
            keys=dict(keys),
        )
        temporary = self.path / f".{_RECORD}"
        temporary.write_text(record.model_dump_json(by_alias=True, exclude_none=True, indent=1), encoding="utf-8")
        temporary.replace(self.path / _RECORD)


def records(state: Path) -> list[Record]:
    """Every local job.

    Raises:
        CommandError: a record cannot be read; what it refers to would go unprotected.
    """
    found: list[Record] = []
    for path in sorted(state.glob(f"*/{_RECORD}")):
        try:
            found.append(Record.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            raise CommandError(f"{path} cannot be read ({error}): mend it, or remove {path.parent}") from None
    return found
