# SPDX-License-Identifier: Apache-2.0
"""An API server that refuses, fails and forgets: 409, 429 and 500 in a tenth of all calls, watches cut and gone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from kinema_operator.store import WATCHED

from tests.faults.conftest import Replica, Stand
from tests.faults.lives import KINDS, Kind, Outcome, begin, gone
from tests.faults.proxy import GONE, GONE_EVENT, Answer, Break, Call, Fault, failure
from tests.waiting import until

pytestmark = [pytest.mark.controlplane, pytest.mark.slow, pytest.mark.timeout(600)]

FAULT = "409, 429 and 500 in 10 % of calls, watches cut and 410"
RATE = 0.1
BATCHES = 2
LOOKS = ("429", "500")
CHANGES = ("409", "429", "500", "500 although carried out")
WATCHES = ("410", "410 in the stream", "cut in the middle of a line", "")


@dataclass
class Noise:
    """Spoils a tenth of the calls, and three watches of four."""

    draw: random.Random
    rate: float = RATE
    calls: int = 0
    done: Counter[str] = field(default_factory=Counter)
    _changes: Iterator[str] = field(default_factory=lambda: cycle(CHANGES))
    _looks: Iterator[str] = field(default_factory=lambda: cycle(LOOKS))
    _watches: Iterator[str] = field(default_factory=lambda: cycle(WATCHES))

    def __call__(self, call: Call) -> Fault | None:
        if call.watch:
            return self._watch()
        self.calls += 1
        if self.draw.random() >= self.rate:
            return None
        kind = next(self._changes if call.changes else self._looks)
        self.done[kind] += 1
        if kind == "409":
            # Of a child: as if its name were taken. Of anything else: as if it had changed.
            reason = "AlreadyExists" if call.method == "POST" else "Conflict"
            return Answer(409, failure(409, reason, "told by the proxy"))
        if kind == "429":
            status = failure(429, "TooManyRequests", "told by the proxy", retryAfterSeconds=1)
            return Answer(429, status, {"Retry-After": "1"})
        status = failure(500, "InternalError", "told by the proxy")
        return Answer(500, status, carried_out=kind.endswith("out") and call.changes)

    def _watch(self) -> Fault | None:
        kind = next(self._watches)
        if not kind:
            return None
        self.done[kind] += 1
        if kind == "410":
            return Answer(410, GONE)
        return Break(self.draw.randrange(4), GONE_EVENT if "410" in kind else b"")


@pytest.fixture(scope="module")
def replica(stand: Stand) -> Iterator[Replica]:
    with stand.replicas(resyncSeconds=10) as (replica,):
        yield replica


def test_every_job_ends_as_it_should(stand: Stand, replica: Replica) -> None:
    noise = Noise(random.Random(410))
    replica.proxy.plan = noise
    replica.start()
    replica.ready()
    lives = [begin(stand.plane, stand.kubelet, kind) for _ in range(BATCHES) for kind in KINDS]
    outcomes: dict[Kind, list[Outcome]] = {kind: [] for kind in KINDS}
    for life in lives:
        life.ends()
    replica.proxy.plan = lambda call: None
    # Ended well or not, the process itself has not.
    assert replica.operator.process is not None and replica.operator.process.poll() is None, replica.operator.log()
    assert 'kinema_reconciles_total{result="bug"}' not in replica.operator.metrics()
    for life in lives:
        outcomes[life.kind].append(life.judge())
    spoilt = sum(noise.done[kind] for kind in CHANGES)
    assert noise.calls >= 200 and spoilt >= noise.calls * RATE / 2, (noise.calls, noise.done)
    assert all(noise.done[kind] for kind in (*CHANGES, *WATCHES) if kind), noise.done
    for kind, found in outcomes.items():
        stand.table.add(FAULT, kind, found)
    told = ", ".join(f"{count} x {what}" for what, count in sorted(noise.done.items()))
    stand.table.injected[FAULT] = f"{noise.calls} calls beside the watches; {told}"
    gone(lives)


def test_a_child_deleted_while_every_watch_is_gone_is_found_out(stand: Stand, replica: Replica) -> None:
    """No event tells of it: after a 410 a watch begins anew, and says nothing of what is no more."""
    if replica.operator.process is None:
        replica.start()
    replica.ready()
    team = stand.team()
    team.rules.hold.add("prepare")
    team.apply()
    team.runs("prepare")
    blind = Blind()
    replica.proxy.plan = blind
    replica.proxy.cut()
    until("a watch still sees", lambda: len(blind.refused) == len(WATCHED))
    team.kubectl("delete", "job", "wan-prepare-1", "--wait=false")
    until("it stays", lambda: "wan-prepare-1" not in team.children())
    replica.proxy.plan = lambda call: None
    team.runs("prepare", attempt=2)
    team.rules.hold.clear()
    team.reaches("Succeeded")
    assert team.stage("prepare")["attempts"][0]["reason"] == "ChildDeleted"


@dataclass
class Blind:
    """Refuses every watch."""

    refused: set[str] = field(default_factory=set)

    def __call__(self, call: Call) -> Fault | None:
        if not call.watch:
            return None
        self.refused.add(call.path)
        return Answer(410, GONE)
