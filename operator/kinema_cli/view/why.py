# SPDX-License-Identifier: Apache-2.0
"""Why a job stands where it stands: cause, fix, conditions, events, and what to type next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from rich.text import Text

from kinema_cli.view.jobs import moving, name_of, phase_of
from kinema_cli.view.table import Column, pairs, table
from kinema_cli.view.text import Raw, age

_EVENTS = 8
_LOG_LINES = 10
_CONDITIONS = (Column("CONDITION"), Column("STATUS"), Column("REASON"), Column("SINCE", need=1, right=True))
_EVENT_COLUMNS = (Column("AGO", right=True), Column("REASON", need=1), Column("EVENT", prose=True))
_POOL_REASONS = frozenset({"UnknownPool", "NotEnoughNodes", "NotEnoughDevices", "DoesNotFit"})


class Cause(NamedTuple):
    """What is wrong, and what to do."""

    what: str
    fix: str


def why(
    job: Raw, events: Iterable[Raw], *, now: datetime, options: str = "", width: int | None = None
) -> list[Text | str]:
    """Why a job stands where it stands.

    Args:
        job: the job.
        events: those about it.
        now: the time.
        options: what a command needs so that it is about the same namespace and cluster.
        width: characters of a line.
    """
    found = cause(job)
    state = phase_of(job) + (f" in {stage}" if (stage := (job.get("status") or {}).get("stage")) else "")
    facts = [("job", f"{job['metadata'].get('namespace')}/{name_of(job)}: {state}")]
    facts += [("cause", found.what), ("fix", found.fix)] if found else [("state", _fine(job))]
    lines: list[Text | str] = list(pairs(facts, width=width))
    if log := _log(job):
        lines += ["", "the last lines of its log:", *(f"  {line}" for line in log)]
    if conditions := (job.get("status") or {}).get("conditions"):
        rows = [(c["type"], c["status"], c["reason"], age(c.get("lastTransitionTime"), now)) for c in conditions]
        lines += ["", *table(_CONDITIONS, rows, width=width)]
    if told := _told(events, now):
        lines += ["", *table(_EVENT_COLUMNS, told, width=width)]
    lines += ["", "next:", *(f"  {command}" for command in following(job, options))]
    return lines


def cause(job: Raw) -> Cause | None:
    """What keeps a job from going on; None while all is well."""
    status, metadata = job.get("status") or {}, job["metadata"]
    if not status or int(status.get("observedGeneration") or 0) < int(metadata.get("generation") or 0):
        what = "the operator has not looked at the job as it is now"
        return Cause(what, "wait a moment; if it stays like this, `kinema doctor` says whether the operator works")
    diagnosis = str(status.get("diagnosis") or "")
    if diagnosis:
        return _split(diagnosis, status)
    if phase_of(job) == "Suspended":
        return Cause("it is suspended by spec.policy.suspend", f"kinema resume {name_of(job)}")
    if phase_of(job) == "Cancelled":
        return Cause(
            "it was cancelled by spec.policy.cancel",
            "create a new job: it reuses every artifact that still fits",
        )
    refused = next(
        (c for c in status.get("conditions") or [] if c["type"] == "Accepted" and c["status"] == "False"), None
    )
    if refused is not None:
        return Cause(str(refused.get("message") or refused["reason"]), "")
    if phase_of(job) == "Failed":
        return Cause(str(status.get("message") or "it failed"), "")
    return None


def _split(diagnosis: str, status: Mapping[str, Any]) -> Cause:
    """The operator's sentence is the cause, which it says elsewhere too, and after that the fix."""
    stage: Mapping[str, Any] = next((s for s in status.get("stages") or [] if s["name"] == status.get("stage")), {})
    said = [str(status.get("message") or ""), f"{stage.get('name')} {stage.get('message')}"]
    for what in sorted((text.rstrip(" .;") for text in said if text), key=len, reverse=True):
        if diagnosis.startswith(f"{what}; "):
            return Cause(what, diagnosis.removeprefix(f"{what}; "))
    what, _, fix = diagnosis.rpartition("; ")
    return Cause(what or diagnosis, fix if what else "")


def _fine(job: Raw) -> str:
    status = job.get("status") or {}
    parts = [str(status.get("message") or "all is well"), moving(job) if phase_of(job) == "Running" else ""]
    return "; ".join(part for part in parts if part)


def _log(job: Raw) -> list[str]:
    """The end of the log of the attempt that failed last."""
    status = job.get("status") or {}
    stage: Mapping[str, Any] = next((s for s in status.get("stages") or [] if s["name"] == status.get("stage")), {})
    attempts = stage.get("attempts") or []
    if not attempts or attempts[-1]["state"] != "Failed":
        return []
    return [line for line in str(attempts[-1].get("logTail") or "").splitlines() if line.strip()][-_LOG_LINES:]


def _told(events: Iterable[Raw], now: datetime) -> list[Sequence[object]]:
    newest = sorted(events, key=when)[-_EVENTS:]
    return [
        (age(when(event), now), event.get("reason"), f"{_warning(event)}{event.get('message') or ''}")
        for event in newest
    ]


def _warning(event: Raw) -> str:
    return "! " if event.get("type") == "Warning" else ""


def when(event: Raw) -> str:
    """When an event was seen last."""
    series = (event.get("series") or {}).get("lastObservedTime")
    times = (series, event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((str(time) for time in times if time), "")


def following(job: Raw, options: str = "") -> Iterator[str]:
    """Commands that help from here."""
    status, name = job.get("status") or {}, name_of(job)
    stage: Mapping[str, Any] | None = next(
        (s for s in status.get("stages") or [] if s["name"] == status.get("stage")), None
    )
    reasons = {c["reason"] for c in status.get("conditions") or []}
    phase = phase_of(job)
    if not status:
        yield f"kinema doctor{options}"
        return
    if reasons & _POOL_REASONS:
        yield f"kinema pools{options}"
    if phase == "Failed" and stage is not None and stage.get("attempts"):
        number = stage["attempts"][-1]["number"]
        yield f"kinema logs {name} --stage {stage['name']} --attempt {number}{options}"
        yield f"kinema retry {name}{options}"
    elif phase == "Running":
        yield f"kinema logs {name} --follow{options}"
        yield f"kinema get {name} --watch{options}"
    elif phase == "Suspended":
        yield f"kinema resume {name}{options}"
    elif phase == "Succeeded":
        yield f"kinema samples {name}{options}"
        yield f"kinema loss {name}{options}"
    elif phase == "Pending":
        yield f"kinema get {name} --watch{options}"
    if phase not in ("Succeeded", "Cancelled"):
        yield f"kinema report {name}{options}"
    else:
        yield f"kinema get {name}{options}"
