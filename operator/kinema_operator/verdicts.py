# SPDX-License-Identifier: Apache-2.0
"""Why a finished child failed: from what its pods left to a failure of the table."""

from __future__ import annotations

from datetime import UTC, datetime

from kinema_api.exits import Exit, FailureClass
from kinema_operator.diagnosis import joined
from kinema_operator.failures import (
    EXITS,
    LOG_PATTERNS,
    NAME_CONTAINERS,
    NODE_REFUSED,
    POD_REASONS,
    SCRATCH_FULL,
    Cause,
    Failure,
)
from kinema_operator.observed import Child, PodEnd

_FOLLOWERS = frozenset({Exit.COMMUNICATION, Exit.INTERRUPTED})
"""Codes with which a member ends because another one failed first."""
_UNKNOWING = frozenset({Exit.INTERNAL, Exit.COMMUNICATION})
"""Codes with which a stage ends that lost a process and does not know why."""
_KILLED = Cause(FailureClass.INTERNAL, "Killed")
_FAILED = Cause(FailureClass.INFRASTRUCTURE, "PodFailed")
_LATE = datetime.max.replace(tzinfo=UTC)


def classify(child: Child) -> Failure:
    """Why a finished child failed: the word of the member that failed first, of itself."""
    failed = [end for end in child.pods if end.failed]
    if not failed:
        return Failure(FailureClass.INFRASTRUCTURE, "PodsGone", child.message or "its pods are gone")
    return _of_pod(min(failed, key=_order))


def _order(end: PodEnd) -> tuple[bool, datetime]:
    follows = _typed(end) in _FOLLOWERS and end.reason not in POD_REASONS
    return (follows, end.finished_at or _LATE)


def _typed(end: PodEnd) -> Exit | None:
    """The exit code that the stage itself chose; None when it was killed or never ran."""
    code = end.termination.code if end.termination is not None else end.exit_code
    return next((known for known in EXITS if known == code), None)


def _of_pod(end: PodEnd) -> Failure:
    cause, message = _named(end)
    said = end.termination
    return Failure(
        kind=cause.kind,
        reason=cause.reason,
        message=message,
        exit_code=end.exit_code if said is None else said.code,
        node=end.node,
        log_tail=(said.log_tail if said is not None else "") or end.log_tail,
        stacks=said.stacks if said is not None else None,
    )


def _named(end: PodEnd) -> tuple[Cause, str]:
    """The cause and its sentence; what the stage says of itself first, unless Kubernetes took the pod away."""
    where = f"pod {end.name}" + (f" on node {end.node}" if end.node else "")
    code = _typed(end)
    seen = _seen(end)
    if seen is not None and seen.kind is FailureClass.HOST_OUT_OF_MEMORY and code in _UNKNOWING:
        # The kernel killed one of its processes, and it could tell no more than that one was lost.
        code = None
    if code is not None and (seen is None or code is not Exit.INTERRUPTED):
        said = end.termination.message if end.termination is not None else ""
        cause = (_from_log(end) if code is Exit.INTERNAL else None) or EXITS[code]
        return cause, said or f"{where} exited with {int(code)}"
    detail = f": {end.message}" if end.message else ""
    if seen is not None and seen.kind is FailureClass.HOST_OUT_OF_MEMORY:
        return seen, f"{where} used more memory than its limit; raise the stage's resources.memory"
    if seen is not None:
        failed = f"{where} failed ({end.reason or end.init}){detail}"
        scratch = seen.kind is FailureClass.STORAGE
        return seen, joined(failed, "raise podTemplate.scratch of the stage") if scratch else failed
    if end.exit_code is not None:
        return _from_log(end) or _KILLED, f"{where} was killed, exit code {end.exit_code}{detail}"
    return _FAILED, f"{where}: " + ": ".join(part for part in (end.reason, end.message or "it never ran") if part)


def _seen(end: PodEnd) -> Cause | None:
    """What Kubernetes says of the pod, where that is more than that it failed."""
    if end.init in NAME_CONTAINERS:
        return Cause(FailureClass.INFRASTRUCTURE, "NameNotResolved")
    if end.reason == "Evicted" and SCRATCH_FULL.search(end.message):
        return Cause(FailureClass.STORAGE, "ScratchFull")
    if NODE_REFUSED.match(end.reason):
        return POD_REASONS["UnexpectedAdmissionError"]
    return POD_REASONS.get(end.reason)


def _from_log(end: PodEnd) -> Cause | None:
    """What the end of the log and the message tell of a process that did not name its failure."""
    said = end.termination
    text = "\n".join((said.message, said.log_tail) if said is not None else ()) + "\n" + end.log_tail
    return next((cause for pattern, cause in LOG_PATTERNS if pattern.search(text)), None)
