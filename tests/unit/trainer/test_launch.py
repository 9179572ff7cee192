# SPDX-License-Identifier: Apache-2.0
"""How the train stage starts processes and learns why they ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import DistBackendError, DistStoreError

from kinema_api.exits import Exit, StageError
from kinema_stage.memory import Memory
from kinema_stage.pace import Rule
from kinema_stage.termination import WorkerError
from kinema_stage.watchdog import Stall, Watchdog
from kinema_trainer import launch
from kinema_trainer.launch import Ended, Place, judge
from kinema_trainer.numbers.reports import Failure, Inbox, Reporter, Step
from kinema_trainer.stages.train import CAUSE_SECONDS, outlast_the_cause
from kinema_trainer.worker import classify

POD = {
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_NPROC_PER_NODE": "8",
    "PET_MASTER_ADDR": "run-train-1-master-0",
    "PET_MASTER_PORT": "23456",
}


def test_a_pod_of_a_gang_joins_by_static_rendezvous() -> None:
    place = Place.from_environment(POD, devices_per_node=1)
    command = place.command(Path("stage.json"))
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--max-restarts=0"} <= set(command)
    assert {"--master-addr=run-train-1-master-0", "--master-port=23456"} <= set(command)
    assert "--rdzv-conf=timeout=1800" in command
    assert command[-4:] == ["-m", "kinema_trainer.worker", "--config", "stage.json"]
    assert not place.leads
    assert place.environment() == {}


def test_a_node_with_one_process_needs_no_torchrun() -> None:
    place = Place.from_environment({**POD, "PET_NPROC_PER_NODE": "1"}, devices_per_node=1)
    assert place.command(Path("stage.json"))[1:3] == ["-m", "kinema_trainer.worker"]
    found = place.environment()
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_PORT"]) == ("1", "2", "23456")


def test_without_a_gang_the_config_says_how_many_processes() -> None:
    place = Place.from_environment({}, devices_per_node=3)
    assert (place.nodes, place.processes, place.leads) == (1, 3, True)


def test_a_rendezvous_with_holes_is_named() -> None:
    half = {name: value for name, value in POD.items() if name != "PET_MASTER_ADDR"}
    with pytest.raises(StageError, match="PET_MASTER_ADDR") as caught:
        Place.from_environment(half, devices_per_node=1)
    assert caught.value.code is Exit.USER


def test_the_first_cause_counts_not_what_followed(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    assert inbox.failure() is None
    Reporter(tmp_path, rank=1).failed(Exit.COMMUNICATION, "peer gone")
    assert inbox.failure() is not None
    Reporter(tmp_path, rank=0).failed(Exit.NUMERICS, "the loss is nan at step 3")
    Reporter(tmp_path, rank=2).failed(Exit.INTERNAL, "later")
    failure = inbox.failure()
    assert failure is not None
    assert (failure.rank, failure.code) == (0, Exit.NUMERICS)
    inbox.close()


def test_steps_arrive_in_order_and_nobody_waits_for_a_listener(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, rank=0)
    step = Step(step=1, total=2, eta_seconds=0.5, metrics={"loss": 0.25}, log=True, memory=(1e9, 2e9))
    reporter.step(step)
    inbox = Inbox(tmp_path)
    reporter.step(step)
    reporter.step(Step(step=2, total=2, eta_seconds=None, metrics={}, log=False))
    assert inbox.receive(1.0) == step
    second = inbox.receive(1.0)
    assert second is not None
    assert second.step == 2
    assert inbox.receive(0.01) is None
    assert inbox.pids() == {0: os.getpid()}
    inbox.close()


def run_program(
    tmp_path: Path,
    program: str,
    *,
    interrupted: threading.Event | None = None,
    nodes: int = 1,
    processes: int = 1,
) -> list[Step]:
    """Let a program stand for the training process."""
    script = tmp_path / "program.py"
    script.write_text(program)

    class Fake(Place):
        def command(self, config: Path) -> list[str]:
            return [sys.executable, str(script)]

    steps: list[Step] = []
    launch.run(
        Fake(nodes=nodes, node=0, processes=processes, address="127.0.0.1", port=0),
        config=Path("unused"),
        environment=dict(os.environ),
        interrupted=interrupted or threading.Event(),
        on_step=steps.append,
    )
    return steps


REPORTER = "from kinema_trainer.numbers.reports import Reporter, Step\nr = Reporter.from_environment(rank=0)\n"


def test_steps_reach_the_stage(tmp_path: Path) -> None:
    program = REPORTER + "[r.step(Step(step=n, total=3, eta_seconds=1.0, metrics={}, log=True)) for n in (1, 2, 3)]"
    assert [step.step for step in run_program(tmp_path, program)] == [1, 2, 3]


def test_a_processs_reason_is_the_stages(tmp_path: Path) -> None:
    program = REPORTER + "r.failed(68, 'the loss is nan at step 3')\nraise SystemExit(68)"
    with pytest.raises(StageError, match="the loss is nan at step 3") as caught:
        run_program(tmp_path, program)
    assert caught.value.code is Exit.NUMERICS


def test_a_killed_process_is_an_internal_failure_that_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"killed by SIGKILL before it could say why \(exit code -9\)") as caught:
        run_program(tmp_path, "import os\nos.kill(os.getpid(), 9)")
    assert caught.value.code.retryable


KILL = "import os\nos.kill(os.getpid(), {signal})"


@pytest.mark.parametrize(
    ("program", "place", "code", "message"),
    [
        ("raise SystemExit(1)", {"nodes": 2, "processes": 8}, Exit.COMMUNICATION, "the nodes did not meet"),
        (REPORTER + "raise SystemExit(1)", {"processes": 2}, Exit.COMMUNICATION, "lost another process.*of memory"),
        (REPORTER + KILL.format(signal=6), {"nodes": 2}, Exit.COMMUNICATION, "lost another process.*of memory"),
        (REPORTER + KILL.format(signal=9), {"nodes": 2}, Exit.INTERNAL, "why .exit code -9.; if its log.*of memory"),
        (REPORTER + KILL.format(signal=6), {}, Exit.INTERNAL, "why .exit code -6.; if its log.*of memory"),
    ],
)
def test_a_silent_end_names_what_may_have_caused_it(
    tmp_path: Path, program: str, place: dict[str, int], code: Exit, message: str
) -> None:
    with pytest.raises(StageError, match=message) as caught:
        run_program(tmp_path, program, nodes=place.get("nodes", 1), processes=place.get("processes", 1))
    assert caught.value.code is code


def test_an_interruption_reaches_the_processes(tmp_path: Path) -> None:
    interrupted = threading.Event()
    interrupted.set()
    program = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        f"{REPORTER}"
        "signal.sigwait({signal.SIGTERM})\n"
        "r.failed(75, 'told to stop: saved step 4 of 6')\n"
        "sys.exit(75)\n"
    )
    with pytest.raises(StageError, match="saved step 4 of 6") as caught:
        run_program(tmp_path, program, interrupted=interrupted)
    assert caught.value.code is Exit.INTERRUPTED


def test_who_is_deaf_before_its_first_step_is_not_waited_for(tmp_path: Path) -> None:
    """The rendezvous waits for pods that may never come, and hears no SIGTERM meanwhile."""
    interrupted = threading.Event()
    interrupted.set()
    program = (
        "import signal, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "from kinema_stage.pace import Phase\n"
        "from kinema_trainer.numbers.reports import Beat\n"
        f"{REPORTER}"
        "for number in range(600):\n"
        "    r.beat(Beat(number=number, phase=Phase.STARTING, limit=1800))\n"
        "    time.sleep(0.1)\n"
    )
    began = time.monotonic()
    with pytest.raises(StageError, match="before training began; nothing is lost") as caught:
        run_program(tmp_path, program, interrupted=interrupted)
    assert caught.value.code is Exit.INTERRUPTED
    assert time.monotonic() - began < 30, "the program alone takes 60 s"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[enforce fail] Connection closed by peer [10.0.0.3]:4021"), Exit.COMMUNICATION),
        (RuntimeError("Gloo AllReduce failed"), Exit.COMMUNICATION),
        (DistStoreError("Timed out after 901 seconds waiting for clients. 1/2 clients joined."), Exit.COMMUNICATION),
        (DistBackendError("NCCL communicator was aborted on rank 1"), Exit.COMMUNICATION),
        (RuntimeError("shape '[3]' is invalid"), Exit.INTERNAL),
        (OSError(28, "No space left on device"), Exit.STORAGE),
        (MemoryError(), Exit.HOST_OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), Exit.OUT_OF_MEMORY),
        (StageError(Exit.DATA, "no clips"), Exit.DATA),
    ],
)
def test_errors_have_their_codes(error: Exception, code: Exit, tmp_path: Path) -> None:
    assert classify(error, workspace=tmp_path)[0] is code


def test_a_process_that_makes_no_step_ends_itself(tmp_path: Path) -> None:
    program = (
        "import threading\n"
        "import os\n"
        "from kinema_stage.pace import Rule\n"
        "from kinema_stage.watchdog import Watchdog\n"
        f"{REPORTER}"
        "def stall(found):\n"
        "    r.failed(71, f'rank 0 {found}', stacks='file:///stacks', tail='last line')\n"
        "    os._exit(71)\n"
        "watchdog = Watchdog(rule=Rule(floor=0, override=0.1), on_stall=stall, interval=0.05)\n"
        "watchdog.start()\n"
        "watchdog.moved()\n"
        "threading.Event().wait()\n"
    )
    with pytest.raises(WorkerError, match=r"rank 0 did not move for 0 s, the limit is 0 s") as caught:
        run_program(tmp_path, program)
    assert (caught.value.code, caught.value.stacks, caught.value.tail) == (
        Exit.STALLED,
        "file:///stacks",
        "last line",
    )


def test_a_process_does_not_outlive_its_stage(tmp_path: Path) -> None:
    parent = os.fork()
    if parent == 0:
        signal.pause()
    program = (
        "import threading\n"
        "from kinema_stage.pace import NEVER\n"
        "from kinema_stage.watchdog import Watchdog\n"
        f"Watchdog(rule=NEVER, parent={parent}, orphaned=71, on_stall=print).start()\n"
        "threading.Event().wait()\n"
    )
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    with pytest.raises(StageError, match="exit code 71"):
        run_program(tmp_path, program)


def test_failures_survive_as_json(tmp_path: Path) -> None:
    Reporter(tmp_path, rank=3).failed(Exit.STORAGE, 'a "quoted" sentence')
    inbox = Inbox(tmp_path)
    failure = inbox.failure()
    inbox.close()
    assert isinstance(failure, Failure)
    assert failure.message == 'a "quoted" sentence'


def test_a_stopped_watchdog_ends_nothing() -> None:
    stalls: list[Stall] = []
    watchdog = Watchdog(rule=Rule(floor=0, override=0.01), on_stall=stalls.append)
    watchdog.moved()
    watchdog.stop()
    watchdog.start()
    watchdog._thread.join(5)
    assert not watchdog._thread.is_alive()
    assert stalls == []


def ended(*, code: int, errors: str = "", memory: Memory | None = None) -> Ended:
    """An end of two processes that said nothing."""
    return Ended(code=code, pids={0: 40, 1: 41}, interrupted=False, errors=errors, memory=memory)


KILLED = "line\nSignal 9 (SIGKILL) received by PID 41\nmore"


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (ended(code=1, errors=KILLED), Exit.COMMUNICATION, "the training process of rank 1 was killed by SIGKILL"),
        (
            ended(code=1, errors="Signal 11 (SIGSEGV) received by PID 99"),
            Exit.COMMUNICATION,
            "a training process was killed by SIGSEGV",
        ),
        (ended(code=-9), Exit.COMMUNICATION, "a training process was killed by SIGKILL"),
        (
            ended(code=1, errors=KILLED, memory=Memory(current=1 << 30, peak=2 << 30, limit=2 << 30, kills=1)),
            Exit.HOST_OUT_OF_MEMORY,
            "rank 1 was killed by SIGKILL.*limit 2.00 GiB.*raise the stage's resources.memory",
        ),
    ],
)
def test_a_killed_process_is_named_with_its_signal(end: Ended, code: Exit, words: str) -> None:
    place = Place(nodes=1, node=0, processes=2, address="127.0.0.1", port=0)
    with pytest.raises(WorkerError, match=words) as caught:
        judge(place, end)
    assert (caught.value.code, caught.value.tail) == (code, end.errors)


def test_a_lost_peer_is_named_with_its_signal(tmp_path: Path) -> None:
    program = (
        f"import sys\n{REPORTER}r.failed(70, 'another training process went away')\n"
        "print('Signal 9 (SIGKILL) received by PID 1', file=sys.stderr)\nsys.exit(1)\n"
    )
    with pytest.raises(WorkerError, match="went away; a training process was killed by SIGKILL") as caught:
        run_program(tmp_path, program, processes=2)
    assert caught.value.code is Exit.COMMUNICATION


class Patience(threading.Event):
    """Knows how long it was waited for."""

    waited: float | None = None

    def wait(self, timeout: float | None = None) -> bool:
        self.waited = timeout
        return True


@pytest.mark.parametrize(
    ("code", "nodes", "waited"),
    [
        (Exit.COMMUNICATION, 2, CAUSE_SECONDS),
        (Exit.COMMUNICATION, 1, None),
        (Exit.HOST_OUT_OF_MEMORY, 2, None),
        (Exit.INTERRUPTED, 2, None),
    ],
)
def test_who_lost_another_node_lets_it_end_first(code: Exit, nodes: int, waited: float | None) -> None:
    place = Place(nodes=nodes, node=0, processes=1, address="127.0.0.1", port=0)
    interrupted = Patience()
    outlast_the_cause(StageError(code, "lost"), place, interrupted)
    assert interrupted.waited == waited
