# SPDX-License-Identifier: Apache-2.0
"""Jobs in a list, and what the running stage says of itself in one line. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.text import Text

from kinema_cli.view.table import Column, table
from kinema_cli.view.text import Raw, age, duration

_COLUMNS = (
    Column("NAME"),
    Column("PHASE"),
    Column("STAGE", need=1),
    Column("PROGRESS", need=2, right=True),
    Column("ETA", need=3, right=True),
    Column("LOSS", need=5),
    Column("RESTARTS", need=6, right=True),
    Column("AGE", need=4, right=True),
)
_WIDE = (
    Column("MODEL", need=7),
    Column("POOL", need=8),
    Column("STEP", need=9, right=True),
    Column("CLIPS/S", need=10, right=True),
    Column("MESSAGE", need=11, prose=True),
)


def listing(
    jobs: Iterable[Raw], *, now: datetime, wide: bool = False, namespaces: bool = False, width: int | None = None
) -> list[Text]:
    """Jobs as a table."""
    columns = (*([Column("NAMESPACE", need=12)] if namespaces else []), *_COLUMNS, *(_WIDE if wide else ()))
    rows = [_row(job, now=now, wide=wide, namespaces=namespaces) for job in jobs]
    return table(columns, rows, width=width)


def _row(job: Raw, *, now: datetime, wide: bool, namespaces: bool) -> Sequence[object]:
    metadata, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    progress = progress_of(job) or {}
    ended = phase_of(job) not in ("Running", "Pending")
    return (
        *([metadata.get("namespace")] if namespaces else []),
        metadata["name"],
        phase_of(job),
        status.get("stage"),
        "" if ended else progress.get("percent"),
        "" if ended else progress.get("eta"),
        progress.get("loss"),
        status.get("restarts") or 0,
        age(metadata.get("creationTimestamp"), now),
        *(_more(spec, status, progress) if wide else ()),
    )


def _more(spec: Raw, status: Raw, progress: Mapping[str, Any]) -> Sequence[object]:
    step, total = progress.get("step"), progress.get("totalSteps")
    return (
        (spec.get("model") or {}).get("name"),
        (spec.get("defaults") or {}).get("pool"),
        "" if step is None else f"{step}/{total}" if total else step,
        (progress.get("metrics") or {}).get("samples_per_second"),
        status.get("diagnosis") or status.get("message"),
    )


def phase_of(job: Raw) -> str:
    """Where a job stands; Pending before the operator has looked at it."""
    return str((job.get("status") or {}).get("phase") or "Pending")


def name_of(job: Raw) -> str:
    """A job's name."""
    return str(job["metadata"]["name"])


def progress_of(job: Raw) -> Mapping[str, Any] | None:
    """What the job's stage said last; None when what was said is of another stage."""
    status = job.get("status") or {}
    progress: Mapping[str, Any] | None = status.get("progress")
    if progress is None or (status.get("stage") and progress.get("stage") != status["stage"]):
        return None
    return progress


def moving(job: Raw) -> str:
    """How far the running stage is: percent, steps, loss, speed, time left."""
    progress = progress_of(job) or {}
    step, total = progress.get("step"), progress.get("totalSteps")
    parts = [str(progress.get("percent") or "")]
    if step is not None:
        parts.append(f"{step}/{total}" if total else f"{step}")
    if progress.get("loss"):
        parts.append(f"loss {progress['loss']}")
    if speed := (progress.get("metrics") or {}).get("samples_per_second"):
        parts.append(f"{speed} clips/s")
    seconds = progress.get("etaSeconds")
    if seconds is not None and progress.get("percentage") != 100:
        parts.append(f"{duration(seconds)} left")
    return ", ".join(part for part in parts if part)
