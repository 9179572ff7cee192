# SPDX-License-Identifier: Apache-2.0
"""Reading and building a job's status."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import ValidationError

from kinema_api.status import JobStatus, Progress
from kinema_operator.observed import Raw

MESSAGE_LIMIT = 1024


def read_status(job: Raw) -> JobStatus:
    """The job's status but for `progress`, which is the server's; a fresh one when it has none yet."""
    status = {name: value for name, value in (job.get("status") or {}).items() if name != "progress"}
    return JobStatus.stored(status)


def generation_of(job: Raw) -> int:
    """The generation of the job's spec."""
    return int(job["metadata"].get("generation", 0))


def read_progress(job: Raw) -> Progress | None:
    """What the running stage said last, as the server wrote it; None when there is nothing that can be read."""
    try:
        return Progress.stored((job.get("status") or {})["progress"])
    except (KeyError, ValidationError):
        return None


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
    return datetime.fromisoformat(text)


def write_progress(progress: Progress) -> Raw:
    """The progress of a stage that begins: nothing has been sent, so that there is no time of it."""
    return {name: value for name, value in progress.wire().items() if name != "updatedAt"}
