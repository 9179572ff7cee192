# SPDX-License-Identifier: Apache-2.0
"""Claims: one holder at a time, whatever dies when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kinema_api.exits import Exit, StageError
from kinema_stage.claim import Claim, Observer, try_claim, wait_or_claim
from kinema_stage.workspace import FolderWorkspace

from tests.unit.stage.support import deadline

TTL = 0.6


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    return FolderWorkspace(f"file://{tmp_path}")


def test_a_living_holder_keeps_others_out_until_release(workspace: FolderWorkspace) -> None:
    claim = try_claim(workspace, "c", holder="a", ttl=TTL)
    assert claim is not None
    seen = [try_claim(workspace, "c", holder="b", ttl=TTL) for _ in _polls(2 * TTL)]
    assert seen and set(seen) == {None}
    with claim:
        assert claim.held
    assert not claim.held
    after = try_claim(workspace, "c", holder="b", ttl=TTL)
    assert after is not None
    after.release()


def test_the_same_holder_takes_over_at_once_and_the_old_one_notices(workspace: FolderWorkspace) -> None:
    old = try_claim(workspace, "c", holder="uid/features/0", ttl=TTL)
    new = try_claim(workspace, "c", holder="uid/features/0", ttl=TTL)
    assert old is not None and new is not None
    deadline(lambda: not old.held, what="the old claim is lost")
    assert new.held
    old.release()
    assert new.beat(), "releasing a lost claim takes nothing from the one that has it"
    new.release()


_HOLD = """
import sys
from kinema_stage.claim import try_claim
from kinema_stage.workspace import FolderWorkspace
claim = try_claim(FolderWorkspace(sys.argv[1]), "c", holder=sys.argv[2], ttl=float(sys.argv[3]))
print("held" if claim else "refused", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_loses_its_claim_after_the_ttl(workspace: FolderWorkspace) -> None:
    ttl = 2.0  # a slow disk may hold a heartbeat up for longer than TTL
    command = [sys.executable, "-c", _HOLD, workspace.uri(), "victim", str(ttl)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline().strip() == "held"
        alive = [try_claim(workspace, "c", holder="heir", ttl=ttl) for _ in _polls(1.5 * ttl)]
        assert set(alive) == {None}, "its heartbeat keeps the claim"
        os.kill(victim.pid, signal.SIGKILL)
        claim = wait_or_claim(workspace, "c", holder="heir", done=lambda: False, interrupted=threading.Event(), ttl=ttl)
        assert claim is not None
        claim.release()


_COUNT = """
import os, sys
from kinema_stage.claim import wait_or_claim
from kinema_stage.workspace import FolderWorkspace
import threading
workspace = FolderWorkspace(sys.argv[1])
for turn in range(int(sys.argv[3])):
    with wait_or_claim(workspace, "c", holder=sys.argv[2], done=lambda: False,
                       interrupted=threading.Event(), ttl=0.3) as claim:
        inside = os.open(workspace.local("inside"), os.O_CREAT | os.O_EXCL)
        counter = workspace.local("counter")
        counter.write_text(str(int(counter.read_text() if counter.exists() else 0) + 1))
        os.close(inside)
        workspace.local("inside").unlink()
"""


def test_processes_take_turns(workspace: FolderWorkspace) -> None:
    turns, workers = 8, 4
    workspace.local("").mkdir(exist_ok=True)
    running = [
        subprocess.Popen([sys.executable, "-c", _COUNT, workspace.uri(), f"worker-{index}", str(turns)])
        for index in range(workers)
    ]
    assert [process.wait(60) for process in running] == [0] * workers
    assert workspace.read("counter") == str(turns * workers).encode()


def test_whoever_waits_ends_when_the_work_is_done(workspace: FolderWorkspace) -> None:
    claim = try_claim(workspace, "c", holder="a", ttl=TTL)
    assert claim is not None
    finished = threading.Event()
    results: list[Claim | None] = []

    def wait() -> None:
        event = threading.Event()
        results.append(wait_or_claim(workspace, "c", holder="b", done=finished.is_set, interrupted=event, ttl=TTL))

    waiter = threading.Thread(target=wait)
    waiter.start()
    finished.set()
    claim.release()
    waiter.join(20)
    assert results == [None]
    again = try_claim(workspace, "c", holder="c", ttl=TTL)
    assert again is not None, "the waiter kept nothing"
    again.release()


def test_waiting_ends_on_sigterm(workspace: FolderWorkspace) -> None:
    claim = try_claim(workspace, "c", holder="a", ttl=TTL)
    interrupted = threading.Event()
    interrupted.set()
    with pytest.raises(StageError) as caught:
        wait_or_claim(workspace, "c", holder="b", done=lambda: False, interrupted=interrupted, ttl=TTL)
    assert caught.value.code is Exit.INTERRUPTED
    assert claim is not None
    claim.release()


def test_a_holder_that_cannot_beat_gives_up_by_itself(workspace: FolderWorkspace) -> None:
    now = [0.0]
    claim = Observer(lambda: now[0]).try_claim(workspace, "c", holder="a", ttl=10, background=False)
    assert claim is not None
    now[0] = 9.9
    assert claim.held
    now[0] = 10.0
    assert not claim.held
    assert not claim.beat()
    now[0] = 0.0
    assert not claim.held, "what was lost stays lost"


def test_claims_of_a_folder_and_below_it_do_not_meet(workspace: FolderWorkspace) -> None:
    outer = try_claim(workspace, "claims/a", holder="x", ttl=TTL)
    inner = try_claim(workspace, "claims/a/b", holder="y", ttl=TTL)
    assert outer is not None and inner is not None
    assert outer.beat() and inner.beat()
    outer.release()
    inner.release()


def _polls(seconds: float) -> Iterator[None]:
    """Turns of polling for so long."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < end:
        pause.wait(0.05)
        yield


class Slow(FolderWorkspace):
    """Runs something just before its first creation, as another process may."""

    def __init__(self, uri: str, meanwhile: Callable[[], object]) -> None:
        super().__init__(uri)
        self._meanwhile: Callable[[], object] | None = meanwhile

    def create(self, path: str, data: bytes) -> bool:
        if self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            meanwhile()
        return super().create(path, data)


def test_a_slow_observer_does_not_revive_an_old_generation(workspace: FolderWorkspace) -> None:
    first = try_claim(workspace, "c", holder="first", ttl=TTL)
    assert first is not None
    first.release()
    claims: list[Claim | None] = []

    def meanwhile() -> None:
        for holder in ("second", "third"):
            claims.append(try_claim(workspace, "c", holder=holder, ttl=TTL))
            if holder == "second" and claims[0] is not None:
                claims[0].release()

    assert try_claim(Slow(workspace.uri(), meanwhile), "c", holder="slow", ttl=TTL) is None
    third = claims[1]
    assert third is not None and third.beat()
    third.release()


class Memory(FolderWorkspace):
    """A workspace in memory, for thousands of runs."""

    def __init__(self) -> None:
        super().__init__("file:///memory")
        self._files: dict[str, bytes] = {}

    def read(self, path: str) -> bytes:
        if path not in self._files:
            raise FileNotFoundError(path)
        return self._files[path]

    def write(self, path: str, data: bytes) -> None:
        self._files[path] = data

    def create(self, path: str, data: bytes) -> bool:
        return self._files.setdefault(path, data) is data

    def list(self, prefix: str) -> list[str]:
        return sorted(path for path in self._files if path.startswith(f"{prefix}/"))

    def delete(self, path: str) -> None:
        self._files.pop(path, None)


class OneHolder(RuleBasedStateMachine):
    """Workers that claim, beat, freeze and release in any order, on one clock; each observer is its own process."""

    workers = st.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.workspace = Memory()
        self.now = 0.0
        self.observers = {name: Observer(lambda: self.now) for name in "abc"}
        self.claims: dict[str, Claim] = {}

    @rule(worker=workers)
    def claim(self, worker: str) -> None:
        if worker in self.claims and self.claims[worker].held:
            return
        claim = self.observers[worker].try_claim(self.workspace, "c", holder=worker, ttl=10, background=False)
        if claim is not None:
            self.claims[worker] = claim

    @rule(worker=workers)
    def beat(self, worker: str) -> None:
        if worker in self.claims:
            self.claims[worker].beat()

    @rule(worker=workers)
    def release(self, worker: str) -> None:
        if worker in self.claims:
            self.claims.pop(worker).release()

    @rule(seconds=st.sampled_from([1, 4, 9, 10, 11]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def one_holder(self) -> None:
        assert sum(claim.held for claim in self.claims.values()) <= 1


OneHolder.TestCase.settings = settings(max_examples=500, stateful_step_count=20, deadline=None)
TestOneHolder = OneHolder.TestCase
