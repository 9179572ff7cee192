# SPDX-License-Identifier: Apache-2.0
"""Failures as data: why an attempt ended, and whether another one can help."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from kinema_api.exits import Exit
from kinema_operator.observed import Child, PodEnd


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    reason: str
    """One CamelCase word."""
    message: str
    """One sentence for the user."""
    retryable: bool
    """Whether another attempt can help without a change by the user."""
    exit_code: int | None = None


REASONS: dict[Exit, str] = {
    Exit.INTERNAL: "InternalError",
    Exit.USER: "InvalidInput",
    Exit.DATA: "DataError",
    Exit.STORAGE: "StorageError",
    Exit.WEIGHTS: "WeightsError",
    Exit.NUMERICS: "LossNotFinite",
    Exit.OUT_OF_MEMORY: "DeviceOutOfMemory",
    Exit.COMMUNICATION: "CommunicationError",
    Exit.STALLED: "Stalled",
    Exit.INTERRUPTED: "Interrupted",
}

_CONSEQUENCES = frozenset({Exit.COMMUNICATION, Exit.INTERRUPTED})
"""Codes with which a member ends because another one failed first."""

CHILD_DELETED = Failure("ChildDeleted", "its child object was deleted from outside", retryable=True)
NO_RESULT = Failure("NoResult", "it ended well, but its pod left no result", retryable=True)

_LATE = datetime.max.replace(tzinfo=UTC)


def classify(child: Child) -> Failure:
    """Why a finished child failed: the word of the member that failed first, of itself."""
    failed = [end for end in child.pods if end.failed]
    if not failed:
        return Failure("Killed", child.message or "its pods are gone", retryable=True)
    return _of_pod(min(failed, key=_order))


def _order(end: PodEnd) -> tuple[bool, datetime]:
    return (_typed(end) in _CONSEQUENCES, end.finished_at or _LATE)


def _typed(end: PodEnd) -> Exit | None:
    """The exit code that the stage itself chose; None when it was killed or never ran."""
    code = end.termination.code if end.termination is not None else end.exit_code
    return Exit(code) if code in REASONS else None


def _of_pod(end: PodEnd) -> Failure:
    where = f"pod {end.name}" + (f" on node {end.node}" if end.node else "")
    code = _typed(end)
    if code is not None:
        said = end.termination.message if end.termination is not None else ""
        return Failure(REASONS[code], said or f"{where} exited with {int(code)}", code.retryable, int(code))
    if end.reason == "OOMKilled":
        message = f"{where} used more memory than its limit; raise the stage's resources.memory"
        return Failure("HostOutOfMemory", message, retryable=True, exit_code=end.exit_code)
    if end.exit_code is not None:
        said = f": {end.message}" if end.message else ""
        return Failure("Killed", f"{where} was killed, exit code {end.exit_code}{said}", True, end.exit_code)
    return Failure(end.reason or "PodFailed", f"{where}: {end.message or 'it never ran'}", retryable=True)
