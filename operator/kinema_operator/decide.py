# SPDX-License-Identifier: Apache-2.0
"""The one decision of the control plane: what to do about a job, from what is seen of it.

Pure: no I/O, no clock, no randomness. Everything the operator does is in what `decide` returns, so that it can be
tested as a table. It may be asked again at any moment, also after a crash between any two of its effects: children
have names that follow from the status, and a child that exists already is as it should be.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import ValidationError

from kinema_api.job import JobSpec
from kinema_api.plan import freeze
from kinema_api.refusal import PlanError
from kinema_api.status import JobStatus, Phase
from kinema_operator.conditions import with_conditions
from kinema_operator.draft import Draft
from kinema_operator.ended import after_end, policy_of
from kinema_operator.observed import Decision, Event, EventType, Observed, Platform, Raw
from kinema_operator.status import generation_of, read_status, shorten, stored, timestamp, write_progress, write_status
from kinema_operator.stop import CANCELLED, deadline, demanded
from kinema_operator.summary import summary
from kinema_operator.walk import walk

WAITS_FOR_ADMINISTRATOR = frozenset({"UnknownPool", "NoImage", "NotEnoughNodes", "NotEnoughDevices", "InvalidSpec"})
"""Plan errors that a change to a pool or another version of the operator can cure; the job waits for it."""


def decide(job: Raw, observed: Observed, platform: Platform, now: datetime) -> Decision:
    """What to do about `job`.

    Args:
        job: the VideoTrainingJob as the API server has it.
        observed: its children, and the pools of the cluster.
        platform: what the operator's settings say.
        now: the time of the decision.
    """
    if job["metadata"].get("deletionTimestamp"):
        return Decision()
    before = read_status(job)
    if before.phase.terminal:
        return after_end(job, before, observed, now)
    status = before.model_copy(update={"observed_generation": generation_of(job)})
    try:
        spec = JobSpec.model_validate(job["spec"])
        resolved = status.resolved or freeze(spec=spec, pools=observed.pools, images=platform.images)
        draft = Draft(
            job=job, spec=spec, resolved=resolved, before=status, observed=observed, platform=platform, now=now
        )
        return _go_on(job, draft)
    except ValidationError as error:
        return _refuse(job, status, PlanError("InvalidSpec", _first_error(error)), now)
    except PlanError as error:
        return _refuse(job, status, error, now)


def _go_on(job: Raw, draft: Draft) -> Decision:
    """Walk along the pipeline as far as the job's policy lets it."""
    demand = demanded(draft.spec.policy, draft.before, draft.now)
    current = walk(draft, demand)
    status = summary(draft, current, demand)
    due = deadline(draft.spec.policy, status, draft.now)
    if due is not None and status.phase is Phase.RUNNING:
        draft.look_again((due - draft.now).total_seconds())
    written = write_status(status)
    return Decision(
        create=tuple(draft.create),
        status=None if written == stored(job) else written,
        progress=write_progress(draft.fresh) if draft.fresh is not None else None,
        delete=tuple(draft.delete),
        events=tuple(draft.events),
        requeue_after=draft.requeue_after,
    )


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in ("spec", *first["loc"]))
    return f"{where}: {first['msg']}; this operator and the installed CRD may be of different versions"


def _refuse(job: Raw, status: JobStatus, error: PlanError, now: datetime) -> Decision:
    """The job cannot go on: it waits where an administrator can help, else it has failed before it began.

    A job that has started keeps its phase: its pods may well be training.
    """
    waits = error.reason in WAITS_FOR_ADMINISTRATOR
    message, reason = shorten(str(error)), error.reason
    phase = status.phase if waits else Phase.FAILED
    if waits and status.resolved is None and policy_of(job).cancel:
        phase, reason, message = Phase.CANCELLED, CANCELLED.reason, CANCELLED.message
    update = {"phase": phase, "message": message, "diagnosis": "" if phase is Phase.CANCELLED else message}
    if phase.terminal:
        update["finished_at"] = timestamp(now)
    status = with_conditions(
        status.model_copy(update=update),
        reason=reason,
        message=message,
        accepted=phase is Phase.CANCELLED,
        now=now,
    )
    written = write_status(status)
    if written == stored(job):
        return Decision()
    return Decision(status=written, events=(Event(EventType.WARNING, reason, message),))
