# SPDX-License-Identifier: Apache-2.0
"""The operator dies between creating a child and writing that down, and somebody deletes the child meanwhile.

Nothing but the child's pods is left to tell of it, and they may need long to end.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, field

import pytest

from tests.faults.conftest import Replica, Stand
from tests.faults.lives import CALM, begin, gone
from tests.faults.proxy import Call, Do, Fault
from tests.waiting import until

pytestmark = [pytest.mark.controlplane, pytest.mark.slow, pytest.mark.timeout(300)]

FAULT = "operator killed before it writes down a child, the child deleted, its pods slow to end"


@dataclass
class Death:
    """Kills the operator once a child of a stage exists and nobody has heard of it."""

    replica: Replica
    path: str
    stage: str
    come: threading.Event = field(default_factory=threading.Event)

    def __call__(self, call: Call) -> Fault | None:
        if self.come.is_set() or call.method != "POST" or not call.path.endswith(self.path):
            return None
        return Do(self._kill, carried_out=True) if f"-{self.stage}-1".encode() in call.body else None

    def _kill(self) -> None:
        os.kill(self.replica.pid, signal.SIGKILL)
        self.come.set()


@pytest.mark.parametrize("stage", ["check", "prepare", "train"])
def test_its_pods_are_waited_for(stand: Stand, stage: str) -> None:
    kind = "pytorchjob" if stage == "train" else "job"
    with stand.replicas() as (replica,):
        life = begin(stand.plane, stand.kubelet, CALM)
        team = life.team
        team.rules.hold.add(stage)
        team.rules.linger.add(stage)
        death = Death(replica, f"{team.namespace}/{kind}s", stage)
        replica.proxy.plan = death
        replica.start()
        until("the operator does not die", death.come.is_set)
        team.runs(stage)
        assert not team.stage(stage).get("attempts"), "the status must not know of the child"
        team.kubectl("delete", kind, f"wan-{stage}-1", "--wait=false")
        until("the child stays", lambda: f"wan-{stage}-1" not in team.children())
        first = [pod["metadata"]["uid"] for pod in team.pods() if "-" + stage + "-1" in pod["metadata"]["name"]]
        assert first, "its pods have ended too early"
        replica.start()
        until("nobody says what is waited for", lambda: "still end" in team.status().get("message", ""))
        assert f"wan-{stage}-1" not in team.children()
        team.rules.linger.clear()
        until("the pods stay", lambda: not {pod["metadata"]["uid"] for pod in team.pods()} & set(first))
        team.rules.hold.clear()
        team.reaches("Succeeded")
        stand.table.add(FAULT, CALM, [life.judge()])
        stand.table.injected[FAULT] = "once each in check, prepare and train"
        gone([life])
