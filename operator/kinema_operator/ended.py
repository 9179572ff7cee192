# SPDX-License-Identifier: Apache-2.0
"""A job that has ended: it stays as it is, is cleaned up, deleted in time, or asked to run again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from kinema_api.job import Cleanup, Policy
from kinema_api.names import Stage
from kinema_api.status import AttemptState, JobStatus, Phase, StageState, StageStatus
from kinema_operator.conditions import with_conditions
from kinema_operator.observed import Child, Decision, Deletion, Event, EventType, Observed, Raw
from kinema_operator.status import generation_of, parse_time, timestamp, write_status

LONGEST_WAIT = 86_400.0
"""Seconds after which a job is looked at again although its time is later."""


def after_end(job: Raw, status: JobStatus, observed: Observed, now: datetime) -> Decision:
    """What to do about a job whose end is stored.

    Its state changes only when a retry is asked for. It is deleted only by a decision that changes nothing else, so
    that its resource version is still the one that was looked at.
    """
    policy = policy_of(job)
    delete = _cleanup(status, policy, observed)
    retry = policy.retry
    if retry is not None and retry.number > status.retry:
        return _retry(job, status, policy, now, delete)
    seen = acknowledged(job, status)
    if seen is not None or delete:
        return Decision(status=seen, delete=delete, requeue_after=_left(status, policy, now))
    left = _left(status, policy, now)
    return Decision(delete_job=left == 0, requeue_after=left or None)


def policy_of(job: Raw) -> Policy:
    """The job's policy; the default one where another version wrote what this one cannot read."""
    try:
        return Policy.stored((job.get("spec") or {}).get("policy") or {})
    except ValidationError:
        return Policy()


def acknowledged(job: Raw, status: JobStatus) -> Raw | None:
    """The status that says that the present generation was seen; None when it says so already."""
    generation = generation_of(job)
    if status.observed_generation == generation:
        return None
    conditions = [condition.model_copy(update={"observed_generation": generation}) for condition in status.conditions]
    return write_status(status.model_copy(update={"observed_generation": generation, "conditions": conditions}))


def _left(status: JobStatus, policy: Policy, now: datetime) -> float | None:
    """Seconds until the job is to be deleted or looked at again; None when it stays."""
    if policy.ttl_seconds_after_finished is None or status.finished_at is None:
        return None
    due = parse_time(status.finished_at) + timedelta(seconds=policy.ttl_seconds_after_finished)
    return min(LONGEST_WAIT, max(0.0, (due - now).total_seconds()))


def _cleanup(status: JobStatus, policy: Policy, observed: Observed) -> tuple[Deletion, ...]:
    """Children that an ended job must not have: those that still run, and those that its policy gives up."""
    ended = {(stage.name, attempt.number): attempt.state for stage in status.stages for attempt in stage.attempts}

    def goes(child: Child) -> bool:
        if child.deleting:
            return False
        if not child.finished or policy.cleanup is Cleanup.ALL:
            return True
        state = ended.get((child.stage, child.attempt))
        return policy.cleanup is Cleanup.SUCCEEDED and state is AttemptState.SUCCEEDED

    return tuple(Deletion(child.kind, child.name, child.uid) for child in observed.children if goes(child))


def _retry(job: Raw, status: JobStatus, policy: Policy, now: datetime, delete: tuple[Deletion, ...]) -> Decision:
    assert policy.retry is not None
    number, asked = policy.retry.number, policy.retry.stage
    served = status.model_copy(update={"retry": number, "observed_generation": generation_of(job)})
    names = [stage.name for stage in status.stages]
    refusal = ""
    if status.phase is Phase.CANCELLED or policy.cancel:
        refusal = "a cancelled job cannot run again: create a new one, it reuses every artifact that still fits"
    elif asked is not None and names and asked not in names:
        refusal = f"the job has no stage {asked}; it has {', '.join(names)}"
    elif asked is None and status.phase is Phase.SUCCEEDED:
        refusal = "no stage has failed; name the first stage to run again in spec.policy.retry.stage"
    if refusal:
        event = Event(EventType.WARNING, "RetryIgnored", f"spec.policy.retry number {number}: {refusal}")
        return Decision(status=write_status(served), delete=delete, events=(event,))
    first = _first(status.stages, asked)
    what = f"runs again from {first}" if first is not None else "runs again"
    fresh: dict[str, Any] = {
        "phase": Phase.PENDING,
        "stage": first,
        "message": what,
        "diagnosis": "",
        "started_at": timestamp(now) if first is not None else None,
        "finished_at": None,
        "suspended_seconds": 0,
        "stages": _reset(status.stages, first),
    }
    if first is Stage.CHECK and status.resolved is not None:
        fresh["resolved"] = status.resolved.model_copy(update={"keys": {}, "pins": {}})
    again = with_conditions(served.model_copy(update=fresh), reason="Retried", message=what, now=now)
    return Decision(
        status=write_status(again), delete=delete, events=(Event(EventType.NORMAL, "JobRetried", f"the job {what}"),)
    )


def _first(stages: Sequence[StageStatus], asked: Stage | None) -> Stage | None:
    """The first stage to run again: the one that is asked for, but none before it may be left undone."""
    undone = next((stage.name for stage in stages if not stage.state.done), None)
    order = [stage.name for stage in stages]
    candidates = [stage for stage in (asked, undone) if stage in order]
    return min(candidates, key=order.index, default=None)


def _reset(stages: Sequence[StageStatus], first: Stage | None) -> list[StageStatus]:
    """The stages with all from `first` on pending again; their attempts stay, so that names are never used twice."""
    order = [stage.name for stage in stages]
    start = order.index(first) if first is not None else len(order)
    pending: dict[str, Any] = {
        "state": StageState.PENDING, "reason": "", "message": "", "artifact": None, "counts": {}, "failures": 0
    }  # fmt: skip
    return [*stages[:start], *(stage.model_copy(update=pending) for stage in stages[start:])]
