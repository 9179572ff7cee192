# SPDX-License-Identifier: Apache-2.0
"""Any interleaving of what children do, users edit, time brings and crashes lose: what must hold all the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kinema_api.exits import Exit, Termination
from kinema_api.names import Stage
from kinema_api.status import AttemptState, JobStatus, Phase
from kinema_operator.observed import Decision
from kinema_operator.status import parse_time, timestamp

from tests.unit.decide.cluster import Cluster, Kept, Killed
from tests.unit.decide.story import KEYS, POOLS, begun, job, pod

pytestmark = pytest.mark.unit

LIMIT = 2
STAGES = {"train": {"timeoutSeconds": 200, "stallSeconds": 60}, "sample": {"timeoutSeconds": 100}}
RETRYABLE = [code for code in Exit if code.retryable]
FINAL = [code for code in Exit if code is not Exit.OK and not code.retryable]
PICK = st.integers(min_value=0, max_value=100)


REACHED = {
    *(phase for phase in Phase if phase is not Phase.PENDING),
    *("ChildDeleted", "DeadlineExceeded", "SuspendRequested", "Stalled", "Timeout"),
    *("acted on what was out of date", "gone", "left an end", "refused to leave an end", "waited for pods"),
}


def lives(machine: AnyLife) -> bool:
    return any(not kept.child.finished for kept in machine.cluster.existing)


class AnyLife(RuleBasedStateMachine):
    """A job, a cluster that does what it likes, and an operator that is killed at any moment."""

    reached: ClassVar[set[str]] = set()
    """What came about in any of the lives, so that none of them is lived in vain."""

    def __init__(self) -> None:
        super().__init__()
        policy = {"restarts": {"limit": LIMIT, "backoffSeconds": 10}}
        self.cluster = Cluster(job=job(stages=STAGES, policy=policy))
        self.last: JobStatus = self.cluster.status
        self.retries = 0
        self.thought: tuple[Decision, int] | None = None

    @initialize(stage=st.sampled_from([None, Stage.TRAIN, Stage.SAMPLE]))
    def begin(self, stage: Stage | None) -> None:
        if stage is not None:
            self.cluster.job["status"] = begun(self.cluster.job, stage)
            self.last = self.cluster.status

    # -- the operator ------------------------------------------------------------------------------------------------

    @rule(killed=st.sampled_from(Killed))
    def look(self, killed: Killed) -> None:
        self.thought = None
        self.cluster.look(killed)
        self._check()

    @rule()
    def think(self) -> None:
        """The operator decides; before it does what it decided the world may change."""
        self.thought = self.cluster.ask(), self.cluster.version

    @precondition(lambda self: self.thought is not None)
    @rule(killed=st.sampled_from(Killed))
    def act(self, killed: Killed) -> None:
        assert self.thought is not None
        decision, seen = self.thought
        self.thought = None
        if not self.cluster.gone:
            if seen != self.cluster.version and decision.status is not None:
                self.reached.add("acted on what was out of date")
            self.cluster.carry_out(decision, killed, seen=seen)
        self._check()

    @rule(times=st.integers(min_value=1, max_value=3))
    def minutes_pass(self, times: int) -> None:
        """Long enough for every wait before another attempt."""
        self.thought = None
        for _ in range(times):
            self.cluster.wait(60)
            self.cluster.settle()
            self._check()

    @rule()
    def rest(self) -> None:
        self.thought = None
        self.cluster.settle()
        self._check()
        if self.cluster.gone:
            return
        again = self.cluster.ask()
        assert again == self.cluster.ask()
        assert again.status is None and not again.events and not again.create
        if self.cluster.status.phase in (Phase.SUSPENDED, Phase.FAILED, Phase.CANCELLED, Phase.SUCCEEDED):
            running = [k.child.name for k in self.cluster.existing if not k.child.finished and not k.child.deleting]
            assert not running, "nothing runs that nobody waits for"

    @rule()
    def do_everything_twice(self) -> None:
        self.thought = None
        decision = self.cluster.ask()
        if self.cluster.gone:
            return
        self.cluster.carry_out(decision)
        once = self.cluster.picture()
        self.cluster.carry_out(decision)
        assert self.cluster.picture() == once
        self._check()

    # -- the cluster -------------------------------------------------------------------------------------------------

    @precondition(lives)
    @rule(pick=PICK)
    def child_runs(self, pick: int) -> None:
        for kept in self._pick(pick, finished=False):
            if not kept.child.deleting:
                kept.child = replace(kept.child, running=True, waiting="")

    @precondition(lives)
    @rule(pick=PICK)
    def child_waits(self, pick: int) -> None:
        for kept in self._pick(pick, finished=False):
            kept.child = replace(kept.child, running=False, waiting="a: no room")

    @precondition(lives)
    @rule(pick=PICK, straggler=st.booleans())
    def child_succeeds(self, pick: int, straggler: bool) -> None:
        for kept in self._pick(pick, finished=False):
            self._succeed(kept, straggler=straggler)

    @precondition(lives)
    @rule(pick=PICK, code=st.sampled_from(RETRYABLE), straggler=st.booleans())
    def child_fails(self, pick: int, code: Exit, straggler: bool) -> None:
        for kept in self._pick(pick, finished=False):
            self.cluster.end(kept, pod=pod(code=code, message="broken"), succeeded=False, lives=straggler)

    @precondition(lives)
    @rule(pick=PICK, code=st.sampled_from(FINAL))
    def child_fails_for_good(self, pick: int, code: Exit) -> None:
        self.child_fails(pick, code, straggler=False)

    @precondition(lambda self: any(k.lives and (k.child.finished or not k.exists) for k in self.cluster.kept))
    @rule(pick=PICK)
    def pods_end(self, pick: int) -> None:
        for kept in [k for k in self.cluster.kept if k.lives and (k.child.finished or not k.exists)][: pick % 3]:
            kept.lives = False

    @precondition(lambda self: any(kept.child.deleting for kept in self.cluster.existing))
    @rule(pick=PICK)
    def deletion_ends(self, pick: int) -> None:
        for kept in [k for k in self.cluster.existing if k.child.deleting][: pick % 3]:
            self.cluster.vanish(kept, pods_too=True)

    @precondition(lambda self: self.cluster.existing)
    @rule(pick=PICK, pods_too=st.booleans())
    def child_is_deleted_by_hand(self, pick: int, pods_too: bool) -> None:
        for kept in self._pick(pick):
            self.cluster.vanish(kept, pods_too=pods_too)

    @precondition(lives)
    @rule(pick=PICK)
    def child_is_replaced_by_hand(self, pick: int) -> None:
        for kept in self._pick(pick, finished=False):
            kept.child = replace(kept.child, uid=f"other-{pick}")

    @rule(seconds=st.sampled_from([1, 10, 45, 400, 2000]))
    def time_passes(self, seconds: float) -> None:
        self.cluster.wait(seconds)

    @precondition(lives)
    @rule(age=st.sampled_from([0, 100, 1000]), log=st.sampled_from([None, 0, 1000]), pick=PICK)
    def progress_is_pushed(self, age: float, log: float | None, pick: int) -> None:
        for kept in self._pick(pick, finished=False):
            moment = timestamp(self.cluster.now - timedelta(seconds=age))
            self.cluster.job.setdefault("status", {})["progress"] = {
                "stage": kept.child.stage.value, "attempt": kept.child.attempt, "updatedAt": moment,
                "metrics": {"seconds_productive": "20", "seconds_saved": "10", "seconds_data": "5"},
            }  # fmt: skip
            self.cluster.version += 1
            last_log = None if log is None else self.cluster.now - timedelta(seconds=log)
            kept.child = replace(kept.child, last_log=last_log)

    @rule(there=st.booleans())
    def pool_comes_or_goes(self, there: bool) -> None:
        self.cluster.pools = dict(POOLS) if there else {}

    # -- the user ----------------------------------------------------------------------------------------------------

    @rule(on=st.booleans())
    def suspend(self, on: bool) -> None:
        self._edit(suspend=on)

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        if pick < 5:
            self._edit(cancel=True)

    @rule(seconds=st.sampled_from([None, 60, 600]))
    def set_deadline(self, seconds: int | None) -> None:
        self._edit(deadlineSeconds=seconds)

    @rule(stage=st.none() | st.sampled_from(Stage))
    def retry(self, stage: Stage | None) -> None:
        self.retries += 1
        wanted = {"number": self.retries} | ({"stage": stage.value} if stage is not None else {})
        self._edit(retry=wanted)

    @rule(cleanup=st.sampled_from(["none", "succeeded", "all"]))
    def clean_up(self, cleanup: str) -> None:
        self._edit(cleanup=cleanup)

    @precondition(lambda self: self.cluster.status.phase.terminal)
    @rule(seconds=st.sampled_from([None, 0, 400]))
    def set_time_to_live(self, seconds: int | None) -> None:
        self._edit(ttlSecondsAfterFinished=seconds)

    @rule(steps=st.sampled_from([100, 200]), timeout=st.sampled_from([300, 900]), nodes=st.sampled_from([1, 2]))
    def edit_the_spec(self, steps: int, timeout: int, nodes: int) -> None:
        train = {**STAGES["train"], "steps": steps, "timeoutSeconds": timeout, "nodes": nodes}
        self.cluster.job["spec"]["stages"] = {"train": train}
        self._edit()

    @rule(on=st.sampled_from([False, False, False, True]))
    def write_what_only_a_newer_operator_knows(self, on: bool) -> None:
        self.cluster.job["spec"]["defaults"].pop("novelty", None)
        self.cluster.job["spec"]["defaults"].update({"novelty": 1} if on else {})
        self._edit()

    # -- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def never_two_live_attempts_of_a_stage(self) -> None:
        for stage in Stage:
            assert len(self.cluster.live(stage)) <= 1, self.cluster.live(stage)

    @invariant()
    def failures_stay_below_their_limit(self) -> None:
        for stage in self.cluster.status.stages:
            assert stage.failures <= LIMIT + 1

    @invariant()
    def the_ledger_adds_up(self) -> None:
        status = self.cluster.status
        ended = [a for stage in status.stages for a in stage.attempts if a.finished_at is not None]
        wall = sum(int((parse_time(a.finished_at or "") - parse_time(a.started_at)).total_seconds()) for a in ended)
        assert sum(status.usage.seconds.model_dump().values()) == wall

    @invariant()
    def what_is_running_is_said_to_run(self) -> None:
        status = self.cluster.status
        running = [a for stage in status.stages for a in stage.attempts if a.state is AttemptState.RUNNING]
        assert len(running) <= (status.phase is Phase.RUNNING)

    def teardown(self) -> None:
        """When the environment stops interfering, the job ends."""
        self.cluster.pools = dict(POOLS)
        self.write_what_only_a_newer_operator_knows(on=False)
        self._edit(suspend=False)
        for _ in range(400):
            self.cluster.settle()
            self._check()
            if self.cluster.gone or self.cluster.status.phase.terminal:
                return
            for kept in self.cluster.kept:
                if kept.exists and kept.child.deleting:
                    self.cluster.vanish(kept, pods_too=True)
                elif kept.exists and not kept.child.finished:
                    self._succeed(kept)
                kept.lives = kept.lives and kept.exists and not kept.child.finished
            self.cluster.wait(30)
        raise AssertionError(f"the job never ends: {self.cluster.status.message}")

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """A terminal state is left only by a retry that was asked for, a cancelled one never; what runs is frozen."""
        before, now = self.last, self.cluster.status
        if before.phase is Phase.CANCELLED:
            assert now.phase is Phase.CANCELLED
        if before.phase.terminal and (now.phase.terminal or now.retry == before.retry):
            assert now.model_copy(update=self._seen(before)) == before
        assert now.retry <= self.retries
        self.reached.update({now.phase} | ({"gone"} if self.cluster.gone else set()))
        self.reached.update(attempt.reason for stage in now.stages for attempt in stage.attempts)
        if "pods of an earlier attempt" in now.message:
            self.reached.add("waited for pods")
        if before.phase.terminal and now.retry > before.retry:
            self.reached.add("refused to leave an end" if now.phase.terminal else "left an end")
        if before.resolved is not None:
            assert now.resolved is not None
            assert now.resolved.model_copy(update={"keys": {}, "pins": {}}) == before.resolved.model_copy(
                update={"keys": {}, "pins": {}}
            )
        self.last = now

    @staticmethod
    def _seen(status: JobStatus) -> dict[str, object]:
        """All that an ended job may still be told: that a generation, and a retry that makes no sense, was seen."""
        return {name: getattr(status, name) for name in ("observed_generation", "retry", "conditions")}

    def _pick(self, pick: int, *, finished: bool | None = None) -> Iterator[Kept]:
        fitting = [k for k in self.cluster.existing if finished in (None, k.child.finished)]
        if fitting:
            yield fitting[pick % len(fitting)]

    def _succeed(self, kept: Kept, *, straggler: bool = False) -> None:
        keys = KEYS if kept.child.stage is Stage.CHECK else {}
        result = pod(termination=Termination(code=0, artifact="pvc://ws/kinema/result", keys=keys))
        self.cluster.end(kept, pod=result, succeeded=True, lives=straggler)

    def _edit(self, **policy: object) -> None:
        held = self.cluster.job["spec"].setdefault("policy", {})
        held.update(policy)
        self.cluster.job["spec"]["policy"] = {key: value for key, value in held.items() if value is not None}
        self.cluster.job["metadata"]["generation"] += 1
        self.cluster.version += 1


LIVES = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_every_promise_holds_in_any_life() -> None:
    AnyLife.reached.clear()
    run_state_machine_as_test(AnyLife, settings=LIVES)
    assert AnyLife.reached >= REACHED
