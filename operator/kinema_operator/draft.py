# SPDX-License-Identifier: Apache-2.0
"""A decision in the making: what is known of a job, and what has been decided about it so far."""

from __future__ import annotations

from datetime import datetime

from kinema_api.exits import FailureClass
from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.pipeline import pipeline, stage_settings
from kinema_api.settings import Stages, StageSettings
from kinema_api.stage import JobRef
from kinema_api.status import (
    Attempt,
    AttemptState,
    JobStatus,
    Progress,
    Resolved,
    StageState,
    StageStatus,
)
from kinema_operator.failures import CONSEQUENCES
from kinema_operator.manifests import AttemptPlan
from kinema_operator.observed import Child, Deletion, Event, EventType, Observed, Platform, Raw
from kinema_operator.stall import Movement
from kinema_operator.status import read_progress, shorten

ATTEMPTS_KEPT = 101
BACKOFF_LIMIT = 300.0
"""Longest wait before another attempt, seconds."""
STRIKES = 2
"""Failed attempts on a node after which the job avoids it."""


class Draft:
    """The one thing that changes while `decide` runs; lives for one decision."""

    def __init__(
        self,
        *,
        job: Raw,
        spec: JobSpec,
        resolved: Resolved,
        before: JobStatus,
        observed: Observed,
        platform: Platform,
        now: datetime,
    ) -> None:
        self.spec = spec
        self.resolved = resolved
        self.before = before
        self.observed = observed
        self.platform = platform
        self.now = now
        metadata = job["metadata"]
        self.ref = JobRef(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])
        self.progress: Progress | None = read_progress(job)
        self.settings = Stages.stored(resolved.stages)
        self.stages: dict[Stage, StageStatus] = {
            stage: StageStatus(name=stage, state=StageState.PENDING) for stage in pipeline(self.settings)
        } | {status.name: status for status in before.stages}
        self.usage = before.usage
        self.restarts = before.restarts
        self.create: list[Raw] = []
        self.delete: list[Deletion] = []
        self.events: list[Event] = []
        self.fresh: Progress | None = None
        """The progress of a stage that begins."""
        self.waits = ""
        """What the current stage waits for."""
        self.movement: Movement | None = None
        """What is known of the running attempt's movement."""
        self.requeue_after: float | None = None

    def child(self, stage: Stage, attempt: int) -> Child | None:
        """The child of an attempt."""
        return next((c for c in self.observed.children if c.stage is stage and c.attempt == attempt), None)

    def stage_settings(self, stage: Stage) -> StageSettings:
        """The frozen settings of a stage."""
        return stage_settings(self.settings, stage)

    def limit(self, stage: Stage) -> int:
        """Failed attempts of a stage that are followed by another one."""
        retries = self.stage_settings(stage).retries
        return self.spec.policy.restarts.limit if retries is None else retries

    def backoff(self, failures: int) -> float:
        """Seconds between a failure and the next attempt."""
        return min(BACKOFF_LIMIT, self.spec.policy.restarts.backoff_seconds * 2.0 ** max(0, failures - 1))

    def plan(self, stage: Stage, number: int) -> AttemptPlan:
        """An attempt with all that its manifest is made of."""
        return AttemptPlan(
            job=self.ref,
            spec=self.spec,
            resolved=self.resolved,
            keys=keys_of(self.resolved.keys),
            stage=stage,
            number=number,
            platform=self.platform,
            avoid=self.avoided(),
        )

    def avoided(self) -> tuple[str, ...]:
        """Nodes on which attempts of the job failed more than once, for a reason that may be the node's."""
        strikes: dict[str, int] = {}
        for attempt in (attempt for status in self.stages.values() for attempt in status.attempts):
            if attempt.node and blames_node(attempt):
                strikes[attempt.node] = strikes.get(attempt.node, 0) + 1
        return tuple(sorted(node for node, count in strikes.items() if count >= STRIKES))

    def set_stage(self, stage: Stage, **update: object) -> None:
        """Change where a stage stands."""
        self.stages[stage] = self.stages[stage].model_copy(update=update)

    def set_attempt(self, stage: Stage, attempt: Attempt, **update: object) -> None:
        """Change the last attempt of a stage, and with it where the stage stands."""
        self.set_stage(stage, attempts=[*self.stages[stage].attempts[:-1], attempt], **update)

    def add_attempt(self, stage: Stage, attempt: Attempt, **update: object) -> None:
        """Add an attempt to a stage."""
        attempts = [*self.stages[stage].attempts, attempt][-ATTEMPTS_KEPT:]
        self.set_stage(stage, attempts=attempts, **update)

    def remove(self, found: Child) -> None:
        """Delete a child, unless it goes already."""
        if not found.deleting:
            self.delete.append(Deletion(found.kind, found.name, found.uid))

    def wait(self, cause: str) -> str:
        """The current stage waits for something; returns the stage's message."""
        self.waits = cause
        return shorten(f"waits: {cause}")

    def look_again(self, seconds: float) -> None:
        """Look at the job again after that time, or before."""
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Post an Event once the status is written."""
        self.events.append(Event(EventType.WARNING if warning else EventType.NORMAL, reason, shorten(message)))


def blames_node(attempt: Attempt) -> bool:
    """Whether an attempt failed for a reason that may be its node's."""
    failed = attempt.state is AttemptState.FAILED and attempt.failure is not None
    return failed and CONSEQUENCES[FailureClass(attempt.failure)].avoid_node


def keys_of(found: dict[str, str]) -> Keys | None:
    """The keys that check left; None when one is missing."""
    names = [field for field in Keys.model_fields if found.get(field)]
    return Keys.stored(found) if len(names) == len(Keys.model_fields) else None
