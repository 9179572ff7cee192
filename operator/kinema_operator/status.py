# SPDX-License-Identifier: Apache-2.0
"""Reading and building a job's status."""

from __future__ import annotations

from datetime import UTC, datetime

from kinema_api.status import Condition, ConditionStatus, JobStatus, Phase
from kinema_operator.observed import Raw

MESSAGE_LIMIT = 1024


def read_status(job: Raw) -> JobStatus:
    """The job's status but for `progress`, which is the server's; a fresh one when it has none yet."""
    status = {name: value for name, value in (job.get("status") or {}).items() if name != "progress"}
    return JobStatus.stored(status)


def write_status(status: JobStatus) -> Raw:
    """The status as the operator writes it: all but `progress`, which is the server's."""
    return status.model_copy(update={"progress": None}).wire()


def stored(job: Raw) -> Raw:
    """The status as the operator would write it, had nothing changed."""
    return write_status(read_status(job))


def shorten(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """The moment that `timestamp` wrote."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def with_conditions(status: JobStatus, *, reason: str, message: str, accepted: bool, now: datetime) -> JobStatus:
    """The status with all four conditions following from its phase."""
    truths = {
        "Accepted": accepted,
        "Running": status.phase is Phase.RUNNING,
        "Succeeded": status.phase is Phase.SUCCEEDED,
        "Failed": status.phase is Phase.FAILED,
    }
    conditions = [
        _condition(status, kind, holds, reason=reason, message=message, now=now) for kind, holds in truths.items()
    ]
    return status.model_copy(update={"conditions": conditions})


def _condition(status: JobStatus, kind: str, holds: bool, *, reason: str, message: str, now: datetime) -> Condition:
    """The condition, keeping its transition time while its status stays."""
    truth = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
    before = status.condition(kind)
    unchanged = before is not None and before.status is truth
    return Condition(
        type=kind,
        status=truth,
        reason=reason,
        message=shorten(message),
        last_transition_time=before.last_transition_time if before is not None and unchanged else timestamp(now),
        observed_generation=status.observed_generation,
    )
