# SPDX-License-Identifier: Apache-2.0
"""How a job ends, as an exit code. Pure."""

from __future__ import annotations

from kinema_cli.view.jobs import phase_of
from kinema_cli.view.text import Raw

FAILED = 1
CANCELLED = 3
DELETED = 4
DETACHED = 130
"""What a shell expects after Ctrl-C."""

ENDS = {
    "0": "succeeded",
    "1": "failed, and no stage says by which code",
    "64 to 75": "failed; the exit code of the stage that failed, as of `kinema run --local`",
    "3": "cancelled",
    "4": "deleted while it was followed",
    "130": "detached by Ctrl-C; the job goes on",
}


def end_of(job: Raw) -> int | None:
    """The exit code of a job that has ended; None while it goes on, or the operator has yet to see its spec."""
    phase, status = phase_of(job), job.get("status") or {}
    if int(status.get("observedGeneration") or 0) < int(job["metadata"].get("generation") or 0):
        return None
    if phase == "Succeeded":
        return 0
    if phase == "Cancelled":
        return CANCELLED
    return _failure(job) if phase == "Failed" else None


def _failure(job: Raw) -> int:
    status = job.get("status") or {}
    stage: Raw = next((item for item in status.get("stages") or [] if item["name"] == status.get("stage")), {})
    attempts = stage.get("attempts") or []
    code = attempts[-1].get("exitCode") if attempts else None
    # A signal's code would read as one that this process got.
    return code if isinstance(code, int) and 0 < code < 128 and code not in (CANCELLED, DELETED) else FAILED
