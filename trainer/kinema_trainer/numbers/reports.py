# SPDX-License-Identifier: Apache-2.0
"""What training processes tell the stage that started them, on the same machine.

Each process leaves a file with its pid while it lives, one that it writes again each second, and, when it fails, one
with the reason. The first process of the run sends a datagram a step. All of it lies in one temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kinema_api.exits import Exit
from kinema_stage.ledger import Spent
from kinema_stage.pace import Phase

ENV_FOLDER = "KINEMA_REPORTS"
_SOCKET = "progress.sock"
_CONSEQUENCES = frozenset({Exit.COMMUNICATION, Exit.INTERRUPTED})
"""Ends that follow when another process failed first."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a process ended."""

    rank: int
    code: int
    message: str
    at: float
    """Unix time."""
    stacks: str | None = None
    """Address of its threads' stacks."""
    tail: str = ""
    """The last lines of its log."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life: another one follows as long as the process is not frozen."""

    number: int
    phase: Phase
    limit: float
    """Seconds without a move that it takes for a hang."""
    spent: Spent = field(default_factory=Spent)

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Beat:
        """From JSON."""
        fields = json.loads(text)
        return cls(**{**fields, "phase": Phase(fields["phase"]), "spent": Spent(**fields["spent"])})


@dataclass(frozen=True, slots=True)
class Step:
    """One finished optimizer step."""

    step: int
    total: int
    eta_seconds: float | None
    metrics: Mapping[str, float | str]
    log: bool
    """Whether it is worth a log line."""
    memory: Sequence[float] = ()
    """The most bytes that each process has had on its device, by rank; empty while that was never gathered."""


class Reporter:
    """A training process's side."""

    def __init__(self, folder: Path, *, rank: int) -> None:
        self._folder = self.folder = folder
        self._rank = rank
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        (folder / f"{rank}.pid").write_text(str(os.getpid()), encoding="ascii")

    @classmethod
    def from_environment(cls, *, rank: int) -> Reporter:
        """The reporter of a process that the train stage started."""
        return cls(Path(os.environ[ENV_FOLDER]), rank=rank)

    def failed(self, code: Exit, message: str, *, stacks: str | None = None, tail: str = "") -> None:
        """Say why this process ends."""
        failure = Failure(rank=self._rank, code=int(code), message=message, at=time.time(), stacks=stacks, tail=tail)
        self._place("failure", json.dumps(asdict(failure)))

    def beat(self, beat: Beat) -> None:
        """Give a sign of life."""
        self._place("beat", beat.encode())

    def _place(self, suffix: str, text: str) -> None:
        """Readers see a whole file or none; after the stage has gone nobody reads."""
        temporary = self._folder / f"{self._rank}.{suffix}.tmp"
        with contextlib.suppress(FileNotFoundError):
            temporary.write_text(text, encoding="utf-8")
            temporary.rename(self._folder / f"{self._rank}.{suffix}")

    def step(self, step: Step) -> None:
        """Send a step; lost when the stage does not keep up, since the next one says more."""
        with contextlib.suppress(BlockingIOError, ConnectionError, FileNotFoundError):
            self._socket.sendto(json.dumps(asdict(step)).encode(), str(self._folder / _SOCKET))


class Inbox:
    """The stage's side."""

    def __init__(self, folder: Path) -> None:
        self._folder = self.folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / _SOCKET))

    def receive(self, timeout: float) -> Step | None:
        """The next step that is reported within `timeout` seconds."""
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return None
        fields = json.loads(data)
        return Step(**{**fields, "memory": tuple(fields["memory"])})

    def pids(self) -> dict[int, int]:
        """Process ids by rank."""
        return {
            int(path.stem): int(text)
            for path in self._folder.glob("*.pid")
            if (text := path.read_text(encoding="ascii"))
        }

    def beats(self) -> dict[int, Beat]:
        """The last sign of life of each process by rank."""
        return {int(path.stem): Beat.decode(path.read_text(encoding="utf-8")) for path in self._folder.glob("*.beat")}

    def failures(self) -> dict[int, Failure]:
        """What failed, by rank."""
        found = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in self._folder.glob("*.failure")]
        return {failure.rank: failure for failure in found}

    def failure(self) -> Failure | None:
        """The failure that came first; one that only followed from another counts when there is no other."""
        found = self.failures().values()
        return min(found, key=lambda failure: (failure.code in _CONSEQUENCES, failure.at), default=None)

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()
