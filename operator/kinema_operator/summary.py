# SPDX-License-Identifier: Apache-2.0
"""Where the job as a whole stands after a walk: phase, sentence, diagnosis, conditions. Pure, see `decide`."""

from __future__ import annotations

from kinema_api.locations import join
from kinema_api.names import Stage, run_folder
from kinema_api.pipeline import pipeline
from kinema_api.status import AttemptState, JobStatus, Phase, StageState, StageStatus
from kinema_operator import denied
from kinema_operator.conditions import Truth, with_conditions
from kinema_operator.diagnosis import fix_for, joined
from kinema_operator.draft import Draft
from kinema_operator.failures import CONSEQUENCES
from kinema_operator.status import shorten, timestamp
from kinema_operator.stop import Stop, suspended_seconds


def summary(draft: Draft, current: Stage | None, demand: Stop | None) -> JobStatus:
    """The job's status after the walk.

    Args:
        draft: what the walk has come to.
        current: the first stage that is not done.
        demand: why nothing may run, if so.
    """
    phase = _phase(draft, current, demand)
    if current is not None and demand is not None and phase is demand.phase:
        _halt(draft, current, demand)
    reason, message = _sentence(draft, current, phase)
    diagnosis = shorten(_diagnosis(draft, current, demand))
    if draft.observed.denied and not phase.terminal:
        reason, (message, diagnosis) = denied.REASON, denied.sentences(draft.observed.denied)
    stages = [draft.stages[stage] for stage in pipeline(draft.settings)]
    before, now = draft.before, timestamp(draft.now)
    suspended = phase is Phase.SUSPENDED
    folder = run_folder(namespace=draft.ref.namespace, name=draft.ref.name, uid=draft.ref.uid)
    status = before.model_copy(
        update={
            "phase": phase,
            "stage": current or stages[-1].name,
            "restarts": draft.restarts,
            "retry": _retry(draft),
            "diagnosis": diagnosis,
            "message": message,
            "started_at": before.started_at or (now if any(stage.attempts for stage in stages) else None),
            "finished_at": now if phase.terminal else None,
            "suspended_at": (before.suspended_at or now) if suspended else None,
            "suspended_seconds": before.suspended_seconds if suspended else suspended_seconds(before, draft.now),
            "usage": draft.usage,
            "stages": stages,
            "resolved": draft.resolved,
            "workspace": join(draft.spec.storage.uri, folder),
        }
    )
    _tell(draft, phase, message)
    moves = draft.movement
    return with_conditions(
        status,
        reason=reason,
        message=message,
        progressing=Truth(moves.status, moves.reason, moves.message) if moves is not None else None,
        now=draft.now,
    )


def _phase(draft: Draft, current: Stage | None, demand: Stop | None) -> Phase:
    if current is None:
        return Phase.SUCCEEDED
    status = draft.stages[current]
    if status.state is StageState.FAILED:
        return Phase.FAILED
    runs = bool(status.attempts) and status.attempts[-1].state is AttemptState.RUNNING
    return Phase.RUNNING if demand is None or runs else demand.phase


def _halt(draft: Draft, current: Stage, demand: Stop) -> None:
    """The stage in which the job stops says so; only an end is final."""
    status = draft.stages[current]
    if status.state is not StageState.FAILED:
        state = StageState.FAILED if demand.final else StageState.PENDING
        draft.set_stage(current, state=state, reason=demand.reason, message=shorten(demand.message))


def _retry(draft: Draft) -> int:
    """The last retry that was served: one that comes before the job has ended asks for nothing."""
    asked, served = draft.spec.policy.retry, draft.before.retry
    if asked is None or asked.number <= served:
        return served
    draft.tell("RetryIgnored", f"spec.policy.retry number {asked.number}: the job has not ended", warning=True)
    return asked.number


def _sentence(draft: Draft, current: Stage | None, phase: Phase) -> tuple[str, str]:
    """The job's reason and message."""
    if current is None:
        return "Completed", shorten(f"done; results are in {_last_artifact(draft)}")
    status = draft.stages[current]
    if phase is not Phase.RUNNING:
        return status.reason, shorten(f"{current}: {status.message}")
    attempt = f"attempt {_number(status)} of at most {_number(status) + draft.limit(current) - status.failures}"
    said = f"{current}: {status.message}" if status.message else f"{current}: {attempt} runs"
    return "StageRunning", shorten(said)


def _number(status: StageStatus) -> int:
    return status.attempts[-1].number if status.attempts else 1


def _diagnosis(draft: Draft, current: Stage | None, demand: Stop | None) -> str:
    """Cause and fix of what keeps the job from going on; empty while all is well."""
    if current is None:
        return ""
    status = draft.stages[current]
    if demand is not None and status.reason == demand.reason:
        # A pause and a cancel are what the user wanted; a deadline's own sentence says what to do.
        return f"{current}: {status.message}" if demand.failure is not None else ""
    if draft.waits:
        return joined(f"{current} waits: {draft.waits}", fix_for(draft.waits))
    last = status.attempts[-1] if status.attempts else None
    if last is None or last.state is not AttemptState.FAILED:
        return ""
    fix = CONSEQUENCES[last.failure].fix if last.failure is not None else ""
    return joined(f"{current}: {status.message}", fix)


def _last_artifact(draft: Draft) -> str:
    artifacts = [status.artifact for status in draft.stages.values() if status.artifact]
    return artifacts[-1] if artifacts else "the workspace"


def _tell(draft: Draft, phase: Phase, message: str) -> None:
    """News about the job as a whole."""
    if phase.terminal:
        draft.tell(f"Job{phase}", message, warning=phase is not Phase.SUCCEEDED)
    elif phase is Phase.SUSPENDED and draft.before.phase is not Phase.SUSPENDED:
        draft.tell("JobSuspended", message)
    elif phase is Phase.RUNNING and draft.before.phase is Phase.SUSPENDED:
        draft.tell("JobResumed", message)
