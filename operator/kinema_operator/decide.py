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
from kinema_api.plan import PlanError, freeze
from kinema_api.status import JobStatus, Phase
from kinema_operator.observed import Decision, Event, EventType, Observed, Platform, Raw
from kinema_operator.status import read_status, shorten, stored, timestamp, with_conditions, write_status
from kinema_operator.walk import Walk

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
        return _acknowledge(job, before)
    draft = before.model_copy(update={"observed_generation": job["metadata"].get("generation", 0)})
    try:
        spec = JobSpec.model_validate(job["spec"])
        resolved = draft.resolved or freeze(spec=spec, pools=observed.pools, images=platform.images)
        return Walk(job, spec, resolved, draft, observed, platform, now).decision()
    except ValidationError as error:
        return _refuse(job, draft, PlanError("InvalidSpec", _first_error(error)), now)
    except PlanError as error:
        return _refuse(job, draft, error, now)


def _acknowledge(job: Raw, status: JobStatus) -> Decision:
    """A job that has ended stays as it is; only that a later edit of its policy was seen is written."""
    generation = job["metadata"].get("generation", 0)
    if status.observed_generation == generation:
        return Decision()
    conditions = [condition.model_copy(update={"observed_generation": generation}) for condition in status.conditions]
    seen = status.model_copy(update={"observed_generation": generation, "conditions": conditions})
    return Decision(status=write_status(seen))


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in ("spec", *first["loc"]))
    return f"{where}: {first['msg']}; this operator and the installed CRD may be of different versions"


def _refuse(job: Raw, status: JobStatus, error: PlanError, now: datetime) -> Decision:
    """The job cannot go on: it waits where an administrator can help, else it has failed before it began.

    A job that has started keeps its phase: its pods may well be training.
    """
    waits = error.reason in WAITS_FOR_ADMINISTRATOR
    phase = Phase.FAILED if not waits else status.phase if status.resolved else Phase.PENDING
    message = shorten(str(error))
    update = {"phase": phase, "message": message}
    if not waits:
        update["finished_at"] = timestamp(now)
    status = with_conditions(
        status.model_copy(update=update), reason=error.reason, message=message, accepted=False, now=now
    )
    written = write_status(status)
    if written == stored(job):
        return Decision()
    return Decision(status=written, events=(Event(EventType.WARNING, error.reason, message),))
