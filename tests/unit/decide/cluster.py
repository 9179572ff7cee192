# SPDX-License-Identifier: Apache-2.0
"""A model of the cluster for one job.

Children live, end and go in their own time, and the operator may be killed between any two of its effects.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum

from kinema_api.names import Stage
from kinema_api.pool import PoolSpec
from kinema_api.status import AttemptState, JobStatus
from kinema_operator.decide import decide
from kinema_operator.observed import Child, Decision, Observed, PodEnd, Raw
from kinema_operator.status import read_status

from tests.unit.decide.story import PLATFORM, POOLS, START, born, job


class Killed(IntEnum):
    """The last effect of a decision before the operator is killed."""

    CREATE = 1
    STATUS = 2
    DELETE = 3
    """None is lost."""


@dataclass
class Kept:
    """A child as the API server has it, with what its pods do."""

    child: Child
    lives: bool = True
    """A pod of it runs or may yet be made."""
    exists: bool = True
    """The child object is there; its pods may outlive it."""


@dataclass
class Cluster:
    """One job, its children and pods, and the clock."""

    job: Raw = field(default_factory=job)
    kept: list[Kept] = field(default_factory=list)
    now: datetime = START
    gone: bool = False
    """The job was deleted."""
    pools: dict[str, PoolSpec] = field(default_factory=lambda: dict(POOLS))
    version: int = 0
    """The job's resource version: whoever writes it raises it."""

    @property
    def status(self) -> JobStatus:
        return read_status(self.job)

    @property
    def existing(self) -> list[Kept]:
        return [kept for kept in self.kept if kept.exists]

    def observe(self) -> Observed:
        """What `observe` would see: a finished child with its pods, strays of the stage that is not done."""
        return Observed(
            children=tuple(self._seen(kept) for kept in self.existing), stray_pods=self._stray(), pools=self.pools
        )

    def ask(self) -> Decision:
        return decide(self.job, self.observe(), PLATFORM, self.now)

    def look(self, killed: Killed = Killed.DELETE) -> Decision:
        """One look of the operator, which may be killed on the way."""
        decision = self.ask()
        if not self.gone:
            self.carry_out(decision, killed)
        return decision

    def carry_out(self, decision: Decision, killed: Killed = Killed.DELETE, *, seen: int | None = None) -> None:
        """Do what a decision says.

        Args:
            decision: what to do.
            killed: the last thing that is done.
            seen: the version of the job that was decided about; None: the present one.
        """
        stale = seen is not None and seen != self.version
        for manifest in decision.create:
            if not self._create(manifest):
                return
        if killed >= Killed.STATUS and decision.status is not None:
            if stale:
                return
            self.version += 1
            progress = (self.job.get("status") or {}).get("progress")
            self.job["status"] = decision.status | ({"progress": progress} if progress else {})
        if killed >= Killed.DELETE:
            for deletion in decision.delete:
                for kept in self.existing:
                    if kept.child.uid == deletion.uid:
                        kept.child = replace(kept.child, deleting=True)
            self.gone = self.gone or (decision.delete_job and not stale)

    def settle(self) -> None:
        """Look until the operator rests; time stands still."""
        for _ in range(40):
            before = self.picture()
            self.look()
            if self.picture() == before:
                return
        raise AssertionError(f"the operator never rests: {self.ask()}")

    def picture(self) -> object:
        """All that a decision can change."""
        return (self.gone, str(self.job.get("status")), [(k.child, k.lives, k.exists) for k in self.kept])

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def end(self, kept: Kept, *, pod: PodEnd, succeeded: bool, lives: bool = False) -> None:
        """A child ends by itself; a pod of it may live on for a while."""
        kept.child = replace(kept.child, finished=True, succeeded=succeeded, running=False, pods=(pod,))
        kept.lives = lives

    def vanish(self, kept: Kept, *, pods_too: bool) -> None:
        """A child is gone, by the operator's deletion or by hand; its pods may outlive it only by hand."""
        kept.exists = False
        kept.lives = kept.lives and not pods_too

    def live(self, stage: Stage) -> list[str]:
        """Names of the attempts of a stage of which anything lives."""
        return [k.child.name for k in self.kept if k.child.stage is stage and (k.lives or self._unfinished(k))]

    @staticmethod
    def _unfinished(kept: Kept) -> bool:
        return kept.exists and not kept.child.finished

    @staticmethod
    def _seen(kept: Kept) -> Child:
        if kept.child.finished and kept.lives:
            straggler = replace(kept.child.pods[0], name="straggler", live=True, failed=False, termination=None)
            return replace(kept.child, pods=(*kept.child.pods, straggler))
        return kept.child

    def _stray(self) -> bool:
        if any(kept.lives for kept in self.kept if not kept.exists):
            return True
        current = next((stage for stage in self.status.stages if not stage.state.done), None)
        if current is None or not current.attempts:
            return False
        last = current.attempts[-1]
        ended = last.state in (AttemptState.FAILED, AttemptState.STOPPED)
        older = [k for k in self.kept if k.child.stage is current.name and k.child.attempt <= last.number]
        return ended and any(kept.lives for kept in older)

    def _create(self, manifest: Raw) -> bool:
        """Whether the name was free, or the object is the one that is wanted."""
        name = manifest["metadata"]["name"]
        held = next((kept for kept in self.existing if kept.child.name == name), None)
        if held is not None:
            return not held.child.deleting
        self.kept.append(Kept(born(manifest, uid=f"uid-{len(self.kept)}", now=self.now)))
        return True
