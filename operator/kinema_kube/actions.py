# SPDX-License-Identifier: Apache-2.0
"""What people ask of a job that exists: suspend, resume, cancel, retry. Pure: from a job to a patch of its policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinema_api.base import Word
from kinema_api.names import Stage
from kinema_api.status import Phase

Patch = dict[str, Any]


class Action(Word):
    """What can be asked of a job."""

    SUSPEND = "suspend"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"


class ActionError(ValueError):
    """The job is in no state to do what is asked; the message says why, and what to do instead."""


def patch(job: Mapping[str, Any], action: Action, *, stage: Stage | None = None) -> Patch | None:
    """The merge patch by which `job` does what is asked; None when it does so already.

    Send it with the job's resource version: it was decided from what the job says now.

    Args:
        job: as it was read.
        action: what is asked.
        stage: for a retry, the first stage to run again; the one that failed when left out.

    Raises:
        ActionError: the job cannot do it.
    """
    if stage is not None and action is not Action.RETRY:
        raise ActionError(f"{action} takes no stage: it is about the whole job")
    match action:
        case Action.SUSPEND:
            return _suspend(job)
        case Action.RESUME:
            return _policy(suspend=False) if _asked(job).get("suspend") else None
        case Action.CANCEL:
            return _cancel(job)
        case Action.RETRY:
            return _retry(job, stage)


def phase_of(job: Mapping[str, Any]) -> Phase:
    """Where a job stands; Pending before the operator has looked at it."""
    return Phase((job.get("status") or {}).get("phase") or Phase.PENDING)


def _suspend(job: Mapping[str, Any]) -> Patch | None:
    if phase_of(job).terminal:
        raise ActionError(f"{_name(job)} has ended ({phase_of(job)}): there is nothing to suspend")
    if _asked(job).get("cancel"):
        raise ActionError(f"{_name(job)} is being cancelled: there is nothing to suspend")
    return None if _asked(job).get("suspend") else _policy(suspend=True)


def _cancel(job: Mapping[str, Any]) -> Patch | None:
    if _asked(job).get("cancel"):
        return None
    if phase_of(job).terminal:
        raise ActionError(f"{_name(job)} has ended ({phase_of(job)}): there is nothing to cancel")
    return _policy(cancel=True)


def _retry(job: Mapping[str, Any], stage: Stage | None) -> Patch | None:
    asked, status, phase = _asked(job), job.get("status") or {}, phase_of(job)
    if phase is Phase.CANCELLED or asked.get("cancel"):
        raise ActionError(
            f"{_name(job)} was cancelled and cannot run again: create a new job, it reuses every artifact that still"
            " fits"
        )
    served = status.get("retry") or 0
    last = asked.get("retry") or {}
    number = last.get("number") or 0
    if number > served and last.get("stage") == (stage and stage.value):
        return None
    if not phase.terminal:
        raise ActionError(
            f"{_name(job)} has not ended ({phase}): a failed stage is tried again by itself; to begin anew, cancel the"
            " job and create a new one"
        )
    names = [item["name"] for item in status.get("stages") or []]
    if stage is not None and names and stage.value not in names:
        raise ActionError(f"{_name(job)} has no stage {stage}; it has {', '.join(names)}")
    if stage is None and phase is Phase.SUCCEEDED:
        raise ActionError(f"no stage of {_name(job)} has failed: name the first stage to run again")
    # Null removes the stage of an earlier request, which a merge would keep.
    return _policy(retry={"number": max(number, served) + 1, "stage": stage and stage.value})


def _asked(job: Mapping[str, Any]) -> Mapping[str, Any]:
    policy: Mapping[str, Any] = (job.get("spec") or {}).get("policy") or {}
    return policy


def _policy(**fields: Any) -> Patch:
    return {"spec": {"policy": fields}}


def _name(job: Mapping[str, Any]) -> str:
    return f"job {job['metadata']['name']!r}"
