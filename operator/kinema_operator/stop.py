# SPDX-License-Identifier: Apache-2.0
"""What a job's policy asks of the moment: to end, to pause, or to go on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kinema_api.exits import FailureClass
from kinema_api.job import Policy
from kinema_api.status import AttemptState, JobStatus, Phase
from kinema_operator.status import parse_time


@dataclass(frozen=True, slots=True)
class Stop:
    """A reason for which no attempt may run."""

    reason: str
    message: str
    phase: Phase
    """The job's, once nothing runs."""
    attempt: AttemptState
    """What becomes of an attempt that runs."""
    failure: FailureClass | None = None

    @property
    def final(self) -> bool:
        """The job ends by it."""
        return self.phase.terminal


CANCELLED = Stop("Cancelled", "cancelled by spec.policy.cancel", Phase.CANCELLED, AttemptState.STOPPED)
SUSPENDED = Stop(
    "SuspendRequested",
    "suspended: set spec.policy.suspend to false to go on",
    Phase.SUSPENDED,
    AttemptState.STOPPED,
)


def demanded(policy: Policy, status: JobStatus, now: datetime) -> Stop | None:
    """What the policy asks for now; an end comes before a pause."""
    if policy.cancel:
        return CANCELLED
    due = deadline(policy, status, now)
    if due is None or now < due:
        return SUSPENDED if policy.suspend else None
    message = (
        f"the job took longer than spec.policy.deadlineSeconds ({policy.deadline_seconds}); raise it and set"
        " spec.policy.retry to go on from the last complete checkpoint"
    )
    return Stop("DeadlineExceeded", message, Phase.FAILED, AttemptState.FAILED, FailureClass.TIMEOUT)


def deadline(policy: Policy, status: JobStatus, now: datetime) -> datetime | None:
    """When the job must have ended; None when there is no such time. Suspended time does not count."""
    if policy.deadline_seconds is None or status.started_at is None:
        return None
    paused = suspended_seconds(status, now)
    return parse_time(status.started_at) + timedelta(seconds=policy.deadline_seconds + paused)


def suspended_seconds(status: JobStatus, now: datetime) -> int:
    """All time in suspension so far."""
    if status.suspended_at is None:
        return status.suspended_seconds
    return status.suspended_seconds + max(0, int((now - parse_time(status.suspended_at)).total_seconds()))
