# SPDX-License-Identifier: Apache-2.0
"""The operator killed by SIGKILL at a hundred moments of jobs' lives, each between two of its requests.

Counting requests hits every gap between two effects, where waiting for a time would mostly hit idleness.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.conftest import Replica, Stand
from tests.faults.lives import KINDS, Kind, Life, Outcome, begin, gone
from tests.faults.proxy import Call, Do, Fault
from tests.waiting import until

pytestmark = [pytest.mark.controlplane, pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = 100
LOOK = 0.5
"""Seconds between two looks at the jobs."""
FAULT = "operator killed between two requests"


@dataclass(frozen=True, slots=True)
class Moment:
    """When the operator dies."""

    requests: int
    """At this one of its requests."""
    team: bool
    """Only requests about a job's namespace count, so that it dies at work; else all do, so that it also dies early."""
    carried_out: bool
    """The API server carries the last request out, and nobody learns of it."""


MOMENTS = st.builds(Moment, requests=st.integers(1, 30), team=st.booleans(), carried_out=st.booleans())


@dataclass
class Fuse:
    """Kills the operator when its moment has come."""

    replica: Replica
    moment: Moment | None = None
    burnt: threading.Event = field(default_factory=threading.Event)
    last: str = ""
    """The request at which it died."""
    _left: int = 0

    def light(self, moment: Moment) -> None:
        self.burnt.clear()
        self._left, self.moment = moment.requests, moment

    def __call__(self, call: Call) -> Fault | None:
        moment = self.moment
        if moment is None or (moment.team and not call.team):
            return None
        self._left -= 1
        if self._left > 0:
            return None
        self.moment, self.last = None, call.what
        return Do(self._kill, carried_out=moment.carried_out and not call.watch)

    def _kill(self) -> None:
        os.kill(self.replica.pid, signal.SIGKILL)
        self.burnt.set()


@dataclass
class Mill:
    """Runs jobs of every kind, one batch after another, while its operator dies again and again."""

    stand: Stand
    replica: Replica
    fuse: Fuse
    lives: list[Life] = field(default_factory=list)
    ended: list[Life] = field(default_factory=list)
    outcomes: dict[Kind, list[Outcome]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    kills: int = 0
    writes: int = 0
    """Kills at a request that changes something."""
    _looked: float = 0.0

    def kill(self, moment: Moment) -> None:
        """Let the jobs run until that moment, and start the operator again."""
        self.fuse.light(moment)
        until(f"the operator does not die at {moment}", self._killed, seconds=90)
        operator = self.replica.operator
        assert operator.process is not None
        assert operator.process.wait(timeout=10) == -signal.SIGKILL, operator.log()[-4000:]
        self.kills += 1
        self.writes += not self.fuse.last.startswith("GET")
        self.replica.start()

    def _killed(self) -> bool:
        if self.fuse.burnt.is_set():
            return True
        code = self.replica.operator.process and self.replica.operator.process.poll()
        assert code is None or self.fuse.burnt.is_set(), self.replica.operator.log()[-4000:]
        self.turn()
        return False

    def turn(self) -> None:
        """Judge the jobs that have ended; begin a batch when none is left."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        over = [life for life in self.lives if life.over]
        for life in over:
            self.outcomes[life.kind].append(life.judge())
            self.lives.remove(life)
        self.ended += over
        if not self.lives:
            self.lives = [begin(self.stand.plane, self.stand.kubelet, kind) for kind in KINDS]

    def finish(self) -> None:
        """Let the last batch end."""

        def over() -> bool:
            return all(life.over for life in self.lives)

        until("the last jobs do not end", over, seconds=90)
        for life in self.lives:
            self.outcomes[life.kind].append(life.judge())
        self.ended += self.lives
        self.lives = []


@pytest.fixture(scope="module")
def mill(stand: Stand) -> Iterator[Mill]:
    with stand.replicas() as (replica,):
        fuse = Fuse(replica)
        replica.proxy.plan = fuse
        replica.start()
        replica.ready()
        yield Mill(stand, replica, fuse)


@settings(
    max_examples=KILLS,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(moment=MOMENTS)
def test_killed_at_any_moment(mill: Mill, moment: Moment) -> None:
    mill.kill(moment)


def test_every_job_ends_as_if_nothing_had_happened(mill: Mill) -> None:
    mill.finish()
    assert mill.kills == KILLS
    assert mill.writes >= KILLS / 4, "most of the moments were idle ones"
    for kind, outcomes in mill.outcomes.items():
        assert outcomes, kind.name
        mill.stand.table.add(FAULT, kind, outcomes)
    jobs = sum(map(len, mill.outcomes.values()))
    mill.stand.table.injected[FAULT] = (
        f"{mill.kills} times SIGKILL over the lives of {jobs} jobs, {mill.writes} of them at a request that changes"
        " something, before or after the API server carried it out"
    )
    gone(mill.ended)
