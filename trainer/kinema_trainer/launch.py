# SPDX-License-Identifier: Apache-2.0
"""Starts this machine's training processes and waits for them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kinema_api.exits import Exit, StageError
from kinema_trainer.reports import ENV_FOLDER, Failure, Inbox, Step

ENV_PARENT = "KINEMA_STAGE_PID"
POLL_SECONDS = 0.2
MEETING_SECONDS = 1800
"""How long a node waits for the others; one may have to pull its image first."""


@dataclass(frozen=True, slots=True)
class Place:
    """This machine's part of the run, with a rendezvous that needs no server: everyone knows the address."""

    nodes: int
    node: int
    processes: int
    address: str
    port: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, devices_per_node: int) -> Place:
        """What training-operator sets on a PyTorchJob's pods; a single machine without it.

        Raises:
            StageError: some of the variables are missing or no numbers.
        """
        if "PET_NNODES" not in environment:
            return cls(nodes=1, node=0, processes=devices_per_node, address="127.0.0.1", port=0)
        try:
            return cls(
                nodes=int(environment["PET_NNODES"]),
                node=int(environment["PET_NODE_RANK"]),
                processes=int(environment["PET_NPROC_PER_NODE"]),
                address=environment["PET_MASTER_ADDR"],
                port=int(environment["PET_MASTER_PORT"]),
            )
        except (KeyError, ValueError) as error:
            raise StageError(
                Exit.USER,
                f"PET_NNODES is set but the rendezvous is not whole ({error}): the PyTorchJob needs a Master and an"
                " integer nprocPerNode",
            ) from error

    @property
    def leads(self) -> bool:
        """Whether the run's first process is here."""
        return self.node == 0

    def command(self, config: Path) -> list[str]:
        """The command that starts the processes: torchrun, or the one process itself, which saves its import."""
        worker = ["-m", "kinema_trainer.worker", "--config", str(config)]
        if self.processes == 1:
            return [sys.executable, *worker]
        rendezvous = ["--standalone"]
        if self.nodes > 1:
            rendezvous = [
                f"--nnodes={self.nodes}",
                f"--node-rank={self.node}",
                f"--master-addr={self.address}",
                f"--master-port={self.port}",
                f"--rdzv-conf=timeout={MEETING_SECONDS}",
            ]
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        return [*torchrun, *rendezvous, f"--nproc-per-node={self.processes}", "--max-restarts=0", *worker]

    def environment(self) -> dict[str, str]:
        """What torchrun would tell a single process; nothing where torchrun does it."""
        if self.processes > 1:
            return {}
        return {
            "RANK": str(self.node),
            "WORLD_SIZE": str(self.nodes),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port or free_port()),
        }


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(
    place: Place,
    *,
    config: Path,
    environment: Mapping[str, str],
    interrupted: threading.Event,
    on_step: Callable[[Step], None],
) -> None:
    """Run the processes of this machine to their end.

    Args:
        place: this machine's part.
        config: the stage config, as the processes read it.
        environment: of the processes.
        interrupted: passed on as SIGTERM once it is set.
        on_step: called for each step that the run's first process reports.

    Raises:
        StageError: a process failed, with its own exit code.
    """
    with tempfile.TemporaryDirectory(prefix="kinema-reports-") as name:
        inbox = Inbox(Path(name))
        child = subprocess.Popen(
            place.command(config),
            env={**environment, **place.environment(), ENV_FOLDER: name, ENV_PARENT: str(os.getpid())},
            start_new_session=True,
        )
        try:
            _follow(child, inbox, interrupted, on_step)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            failure = inbox.failure()
            started = bool(inbox.pids())
            inbox.close()
    _judge(place, child.returncode, failure, started=started, interrupted=interrupted.is_set())


def _follow(
    child: subprocess.Popen[bytes], inbox: Inbox, interrupted: threading.Event, on_step: Callable[[Step], None]
) -> None:
    told: set[int] = set()
    while True:
        ended = child.poll() is not None
        step = inbox.receive(0.001 if ended else POLL_SECONDS)
        if step is not None:
            on_step(step)
        elif ended:
            return
        if interrupted.is_set():
            # Straight to the processes: torchrun would kill them 30 s after its own SIGTERM.
            for rank, pid in inbox.pids().items():
                if rank not in told:
                    told.add(rank)
                    _signal(pid)


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def _judge(place: Place, code: int, failure: Failure | None, *, started: bool, interrupted: bool) -> None:
    if failure is not None:
        raise StageError(Exit(failure.code), failure.message)
    if code == 0:
        return
    if interrupted:
        raise StageError(Exit.INTERRUPTED, "interrupted before training began; nothing is lost")
    if not started and place.nodes > 1 and place.processes > 1:
        raise StageError(
            Exit.COMMUNICATION,
            f"the nodes did not meet at {place.address}:{place.port} (exit code {code}): see whether all {place.nodes}"
            " pods of the stage were running, and whether a network policy keeps them apart",
        )
    memory = "if its log ends in the middle, the machine may be short of memory: raise stages.train.resources"
    killed = f"a training process was killed before it could say why (exit code {code})"
    # torchrun's own exit code hides the signal. A collective that fails or takes too long ends a process by SIGABRT.
    if place.processes > 1 or (place.nodes > 1 and code == -signal.SIGABRT):
        raise StageError(
            Exit.COMMUNICATION, f"{killed}; either it lost another process, see the log of each node, or {memory}"
        )
    raise StageError(Exit.INTERNAL, f"{killed}; {memory}")
