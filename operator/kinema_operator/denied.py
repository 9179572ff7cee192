# SPDX-License-Identifier: Apache-2.0
"""What a job says while the operator lacks a right that it needs for it. Pure."""

from __future__ import annotations

from datetime import datetime

from kinema_operator.conditions import with_conditions
from kinema_operator.diagnosis import fix_for, joined
from kinema_operator.observed import Decision, Event, EventType, Raw
from kinema_operator.status import read_status, shorten, stored, write_status

REASON = "Forbidden"


def sentences(why: str) -> tuple[str, str]:
    """The job's message and diagnosis.

    Args:
        why: what the API server said; it names the verb and the resource.
    """
    cause = f"waits: the operator lacks a right: {why}"
    return shorten(cause), shorten(joined(cause, fix_for(why)))


def hindered(job: Raw, why: str, now: datetime) -> Decision:
    """What to say of a job that cannot be looked at to the end; a job that has ended keeps its status."""
    status = read_status(job)
    message, diagnosis = sentences(why)
    event = Event(EventType.WARNING, REASON, diagnosis)
    if status.phase.terminal:
        return Decision(events=(event,))
    said = status.model_copy(update={"message": message, "diagnosis": diagnosis})
    written = write_status(with_conditions(said, reason=REASON, message=message, now=now))
    return Decision(status=None if written == stored(job) else written, events=(event,))
