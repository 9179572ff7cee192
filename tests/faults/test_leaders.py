# SPDX-License-Identifier: Apache-2.0
"""Two operators that both believe to lead."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from tests.controlplane.installation import HOME
from tests.controlplane.process import ELECTION
from tests.faults.conftest import Replica, Stand
from tests.faults.lives import KINDS, Kind, Life, Outcome, begin, gone
from tests.faults.proxy import Answer, Call, Fault, Hold, failure
from tests.waiting import until

pytestmark = [pytest.mark.controlplane, pytest.mark.slow, pytest.mark.timeout(600)]

MINUTE = 60.0
ROUNDS = 5
FROZEN = "leader frozen for longer than its Lease, its last request held back as long"
BOTH = "two leaders for a minute"


@dataclass
class Flow:
    """Jobs of every kind, a new batch whenever one has ended."""

    stand: Stand
    fault: str
    lives: list[Life] = field(default_factory=list)
    ended: list[Life] = field(default_factory=list)
    outcomes: dict[Kind, list[Outcome]] = field(default_factory=lambda: defaultdict(list))

    def begin(self) -> None:
        self.lives = [begin(self.stand.plane, self.stand.kubelet, kind) for kind in KINDS]

    def turn(self) -> bool:
        """Judge the jobs once all have ended; whether they have."""
        if not all(life.over for life in self.lives):
            return False
        for life in self.lives:
            self.outcomes[life.kind].append(life.judge())
        self.ended, self.lives = [*self.ended, *self.lives], []
        return True

    def finish(self, injected: str) -> None:
        until("the last jobs do not end", self.turn, seconds=120)
        for kind, outcomes in self.outcomes.items():
            self.stand.table.add(self.fault, kind, outcomes)
        self.stand.table.injected[self.fault] = injected
        gone(self.ended)


@dataclass
class Freeze:
    """Stops the leader's process at one of its changes, and holds that request until it is let go."""

    replica: Replica
    requests: int
    """At this one."""
    frozen: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, call: Call) -> Fault | None:
        if not call.team or not call.changes or self.frozen.is_set():
            return None
        self.requests -= 1
        if self.requests > 0:
            return None
        os.kill(self.replica.pid, signal.SIGSTOP)
        self.frozen.set()
        return Hold(self.go)


def test_a_leader_frozen_past_its_lease_begins_nothing_more_and_ends(stand: Stand) -> None:
    with stand.replicas(2) as replicas:
        for replica in replicas:
            replica.start()
            replica.ready()
        flow = Flow(stand, FROZEN)
        for number in range(ROUNDS):
            leader, other = sorted(replicas, key=lambda replica: not replica.leads)
            flow.begin()
            froze = freeze(leader, at=1 + 5 * number)
            other.takes_over()
            before = len(leader.proxy.seen)
            froze.go.set()
            os.kill(leader.pid, signal.SIGCONT)
            process = leader.operator.process
            assert process is not None and process.wait(timeout=20) == 1, leader.operator.log()[-4000:]
            # What was on its way, at most one request of each other job, still arrives.
            late = [call.what for call in leader.proxy.seen[before:] if call.changes and not call.lease]
            assert len(late) < len(KINDS), late
            leader.start()
            leader.ready()
            until("the jobs do not end", flow.turn, seconds=120)
        flow.finish(f"{ROUNDS} times, at a request that changes something; it began nothing more and exited with 1")


def freeze(leader: Replica, *, at: int) -> Freeze:
    froze = Freeze(leader, at)
    leader.proxy.plan = froze
    until("the leader changes nothing", froze.frozen.is_set)
    leader.proxy.plan = lambda call: None
    return froze


class OwnLease:
    """Tells an operator that it holds the Lease, whatever the API server thinks."""

    def __init__(self) -> None:
        self.version = 0

    def __call__(self, call: Call) -> Fault | None:
        if not call.lease:
            return None
        if call.method == "GET":
            return Answer(404, failure(404, "NotFound", "told by the proxy"))
        self.version += 1
        metadata = {"name": "kinema-operator", "namespace": HOME, "resourceVersion": str(self.version)}
        return Answer(200, {"metadata": metadata, "spec": {}})


def test_two_leaders_for_a_minute(stand: Stand) -> None:
    with stand.replicas(2) as replicas:
        for replica in replicas:
            replica.proxy.plan = OwnLease()
            replica.start()
        for replica in replicas:
            replica.ready()
        flow = Flow(stand, BOTH)
        began = time.monotonic()
        flow.begin()
        while time.monotonic() - began < MINUTE:
            assert all(replica.leads for replica in replicas)
            until("the jobs do not end", flow.turn, seconds=120)
            flow.begin()
        flow.finish("both take part in every job, for at least a minute")
        for replica in replicas:
            assert replica.operator.process is not None and replica.operator.process.poll() is None
            assert [call for call in replica.proxy.seen if call.team and call.changes], "it has not taken part"


def test_renewals_that_do_not_arrive_end_the_leader_before_another_one_leads(stand: Stand) -> None:
    with stand.replicas(2) as (leader, other):
        for replica in (leader, other):
            replica.start()
            replica.ready()
            leader.takes_over()
        lost = threading.Event()
        leader.proxy.plan = lambda call: Hold(lost) if call.lease else None
        began = time.monotonic()
        process = leader.operator.process
        assert process is not None and process.wait(timeout=20) == 1, leader.operator.log()[-4000:]
        assert time.monotonic() - began < ELECTION["leaseSeconds"]
        assert "could not be renewed in time" in leader.operator.log()
        other.takes_over()
        lost.set()
