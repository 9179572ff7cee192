# SPDX-License-Identifier: Apache-2.0
"""Starts this machine's training processes and waits for them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from kinema_api.exits import Exit, StageError
from kinema_stage import stacks, termination
from kinema_stage.logs import TAIL_LINES
from kinema_stage.memory import Memory
from kinema_stage.termination import WorkerError
from kinema_stage.watchdog import CHECK_SECONDS, Awake
from kinema_trainer import gang
from kinema_trainer.numbers.reports import ENV_FOLDER, Beat, Failure, Inbox, Step
from kinema_trainer.numbers.wish import Wish, lay

ENV_PARENT = "KINEMA_STAGE_PID"
ENV_STARTED = "KINEMA_STAGE_STARTED"
"""When the stage began, by the machine's monotonic clock."""
POLL_SECONDS = 0.2
LAST_WORDS_SECONDS = 5.0
"""How long the peers of a process that hangs have to find out, and to leave their own stacks."""
LEAVE_SECONDS = 3.0
"""What a process has that is told to stop before its first step: it has nothing to save, and while it waits for others
it hears nothing."""
KEPT_LINES = 200
_SIGNALLED = re.compile(r"Signal (\d+) \(SIG[A-Z0-9]+\) received by PID (\d+)")
"""What torchrun says of a process that was killed; its own exit code hides it."""
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
    on_beat: Callable[[Beat], None] = lambda beat: None,
    keep: Callable[[int, str], str | None] = lambda rank, text: None,
    started: float | None = None,
    wishes: Callable[[], Wish | None] = lambda: None,
) -> None:
    """Run the processes of this machine to their end.

    Args:
        place: this machine's part.
        config: the stage config, as the processes read it.
        environment: of the processes.
        interrupted: passed on as SIGTERM once it is set.
        on_step: called for each step that the run's first process reports.
        on_beat: called with the newest sign of life of this machine's first process.
        keep: stores what is known of a frozen rank, and gives its address.
        started: when the stage began, by the monotonic clock.
        wishes: asked each second which steps somebody wants to have profiled.

    Raises:
        StageError: a process failed, with its own exit code.
    """
    kills = Memory.read().kills
    began = time.monotonic() if started is None else started
    with tempfile.TemporaryDirectory(prefix="kinema-reports-") as name:
        inbox = Inbox(Path(name))
        child = subprocess.Popen(
            place.command(config),
            env={
                **environment,
                **place.environment(),
                ENV_FOLDER: name,
                ENV_PARENT: str(os.getpid()),
                ENV_STARTED: str(began),
            },
            start_new_session=True,
            stderr=subprocess.PIPE,
        )
        assert child.stderr is not None
        errors = Copied(child.stderr)
        watch = Watch(
            child=child,
            inbox=inbox,
            interrupted=interrupted,
            on_step=on_step,
            on_beat=on_beat,
            keep=keep,
            roll=gang.Roll(alone=place.nodes == 1),
            wishes=wishes,
        )
        try:
            watch.follow()
        finally:
            watch.end()
            errors.finish()
            failure, pids = inbox.failure(), inbox.pids()
            inbox.close()
    if watch.stalled is not None:
        raise watch.stalled
    memory = Memory.read()
    ended = Ended(
        code=child.returncode,
        pids=pids,
        interrupted=interrupted.is_set(),
        errors=errors.text,
        memory=memory if memory.kills > kills else None,
    )
    # A peer's lost connection is a consequence; the kernel knows of the cause.
    lost_peer = failure is not None and failure.code == Exit.COMMUNICATION
    if failure is not None and not (lost_peer and ended.memory is not None):
        known = lost_peer and _SIGNALLED.search(ended.errors)
        message = f"{failure.message}; {ended.killed()}" if known else failure.message
        tail = failure.tail or errors.text
        raise WorkerError(Exit(failure.code), message, stacks=failure.stacks, tail=tail)
    judge(place, ended)


class Copied:
    """Passes on what the processes write to stderr, and keeps the end of it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._thread = threading.Thread(target=self._run, name="stderr", daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """The last lines."""
        return "\n".join(tuple(self._lines))

    def finish(self) -> None:
        """Take in what still comes; a process that outlives the others may hold the pipe open."""
        self._thread.join(1.0)

    def _run(self) -> None:
        for line in self._source:
            text = line.decode(errors="replace")
            sys.stderr.write(text)
            if text.strip():
                self._lines.append(text.rstrip("\n"))
        sys.stderr.flush()


@dataclass(slots=True)
class Watch:
    """Follows the processes: steps, signs of life, SIGTERM, and the end of those that hang."""

    child: subprocess.Popen[bytes]
    inbox: Inbox
    interrupted: threading.Event
    on_step: Callable[[Step], None]
    on_beat: Callable[[Beat], None]
    keep: Callable[[int, str], str | None]
    roll: gang.Roll
    wishes: Callable[[], Wish | None] = lambda: None
    stalled: WorkerError | None = None
    _awake: Awake = field(default_factory=Awake)
    _told: dict[int, float] = field(default_factory=dict)
    """When each process was told to stop."""

    def follow(self) -> None:
        """Return when the processes have ended, or have to."""
        look = 0.0
        while True:
            ended = self.child.poll() is not None
            now = self._awake.now()
            if now >= look or ended:
                look = now + CHECK_SECONDS
                self._hear(now)
            step = self.inbox.receive(0.001 if ended else POLL_SECONDS)
            if step is not None:
                self.on_step(step)
            elif ended or self._hung(now):
                self._conclude()
                return
            if self.interrupted.is_set():
                self._tell(now)

    def end(self) -> None:
        """Kill what is left: torchrun, and the processes, which have sessions of their own."""
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        if self.stalled is not None:
            for pid in self.inbox.pids().values():
                _signal(pid, signal.SIGKILL)

    def _hear(self, now: float) -> None:
        self.roll.hear(self.inbox.beats(), now=now)
        first = self.roll.first()
        if first is not None:
            self.on_beat(first)
        wish = self.wishes()
        if wish is not None:
            lay(self.inbox.folder, wish)

    def _tell(self, now: float) -> None:
        # Straight to the processes: torchrun would kill them 30 s after its own SIGTERM.
        for rank, pid in self.inbox.pids().items():
            if rank not in self._told:
                self._told[rank] = now
                _signal(pid, signal.SIGTERM)
            elif now > self._told[rank] + LEAVE_SECONDS and self.roll.starting(rank):
                _signal(pid, signal.SIGKILL)

    def _hung(self, now: float) -> bool:
        return bool(self._living(self.roll.overdue(now=now))) or bool(self._stalled_peers())

    def _stalled_peers(self) -> dict[int, Failure]:
        return {rank: found for rank, found in self.inbox.failures().items() if found.code == Exit.STALLED}

    def _living(self, quiet: Mapping[int, float]) -> dict[int, float]:
        pids = self.inbox.pids()
        return {rank: seconds for rank, seconds in quiet.items() if stacks.state(pids[rank]) not in ("", "Z")}

    def _conclude(self) -> None:
        """Name the cause if there was a hang: whoever is frozen, else whoever found itself hung first."""
        if not self._hung(self._awake.now()):
            return
        frozen = self._living(self.roll.quiet(now=self._awake.now()))
        last = time.monotonic() + LAST_WORDS_SECONDS
        while time.monotonic() < last and not set(self.inbox.pids()) <= set(self._stalled_peers()) | set(frozen):
            self._hear(self._awake.now())
            time.sleep(POLL_SECONDS)
        frozen = self._living(self.roll.quiet(now=self._awake.now()))
        peers = self._stalled_peers()
        if not frozen:
            # The failure that came first says it all.
            return
        pids = self.inbox.pids()
        states = {rank: stacks.state(pids[rank]) for rank in frozen}
        kept = [self.keep(rank, stacks.foreign(pids[rank])) for rank in sorted(frozen)]
        limit = self.roll.limit([*frozen, *peers])
        self.stalled = WorkerError(
            Exit.STALLED,
            gang.sentence(frozen, limit=limit, states=states, stalled=peers),
            stacks=next((address for address in kept if address), None),
            tail=next((peer.tail for peer in peers.values() if peer.tail), ""),
        )


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@dataclass(frozen=True, slots=True)
class Ended:
    """How the processes ended when none of them said why."""

    code: int
    pids: Mapping[int, int]
    interrupted: bool
    errors: str
    memory: Memory | None
    """The container's memory, if the kernel killed one of its processes for it."""

    def killed(self) -> str:
        """Who was killed, and by which signal, as far as anybody knows."""
        found = _SIGNALLED.search(self.errors)
        if self.code < 0:
            who, number = "a training process", -self.code
        elif found is not None:
            ranks = {pid: rank for rank, pid in self.pids.items()}
            rank = ranks.get(int(found[2]))
            who, number = (
                "a training process" if rank is None else f"the training process of rank {rank}",
                int(found[1]),
            )
        else:
            return f"a training process was killed before it could say why (exit code {self.code})"
        name = signal.Signals(number).name
        return f"{who} was killed by {name} before it could say why (exit code {-number})"


def judge(place: Place, ended: Ended) -> None:
    """Raise what the end of silent processes means, if they failed.

    Raises:
        StageError: they did.
    """
    if ended.code == 0:
        return
    tail = "\n".join(ended.errors.splitlines()[-TAIL_LINES:])
    if ended.memory is not None:
        message = termination.host_memory(ended.killed(), memory=ended.memory)
        raise WorkerError(Exit.HOST_OUT_OF_MEMORY, message, tail=tail)
    if ended.interrupted:
        raise StageError(Exit.INTERRUPTED, "interrupted before training began; nothing is lost")
    if not ended.pids and place.nodes > 1 and place.processes > 1:
        raise WorkerError(
            Exit.COMMUNICATION,
            f"the nodes did not meet at {place.address}:{place.port} (exit code {ended.code}): see whether all"
            f" {place.nodes} pods of the stage were running, and whether a network policy keeps them apart",
            tail=tail,
        )
    memory = "if its log ends in the middle, the machine may be short of memory: raise stages.train.resources"
    # A collective that fails or takes too long ends a process by SIGABRT.
    if place.processes > 1 or (place.nodes > 1 and ended.code == -signal.SIGABRT):
        message = f"{ended.killed()}; either it lost another process, see the log of each node, or {memory}"
        raise WorkerError(Exit.COMMUNICATION, message, tail=tail)
    raise WorkerError(Exit.INTERNAL, f"{ended.killed()}; {memory}", tail=tail)
