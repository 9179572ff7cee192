# SPDX-License-Identifier: Apache-2.0
"""A job as kubectl shows it, read leniently: what the view needs and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kinema_api.names import Stage
from kinema_api.status import AttemptState, Phase, StageState


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage."""

    name: str
    state: str
    reason: str = ""
    message: str = ""
    child: str = ""
    """The child object of its last attempt."""
    attempts: int = 0
    failed: int = 0
    """Attempts that failed."""
    failure: str = ""
    """Why the last of them did."""
    seconds: float | None = None
    """From the first attempt's start to the last one's end; None while it has not ended."""
    started: datetime | None = None
    counts: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """The job at one moment."""

    name: str
    uid: str
    phase: str
    message: str
    restarts: int
    workspace: str
    stages: tuple[StageView, ...]
    current: str
    """The stage that runs; empty when none does."""
    percentage: int
    eta: str
    step: int | None
    total_steps: int | None
    loss: str

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase in (Phase.SUCCEEDED.value, Phase.FAILED.value)

    @property
    def succeeded(self) -> bool:
        """Whether every stage is done."""
        return self.phase == Phase.SUCCEEDED.value

    def stage(self, name: str) -> StageView | None:
        """A stage by name."""
        return next((stage for stage in self.stages if stage.name == name), None)


def read(job: Mapping[str, Any]) -> JobView:
    """The view of a VideoTrainingJob object."""
    status = job.get("status") or {}
    listed = {stage["name"]: stage for stage in status.get("stages") or []}
    stages = tuple(
        _stage(name, listed.get(name)) for name in (stage.value for stage in Stage) if not listed or name in listed
    )
    progress = status.get("progress") or {}
    running = next((stage.name for stage in stages if stage.state == StageState.RUNNING.value), "")
    fresh = progress if progress.get("stage") == running else {}
    return JobView(
        name=job["metadata"]["name"],
        uid=job["metadata"]["uid"],
        phase=status.get("phase") or Phase.PENDING.value,
        message=status.get("message") or "",
        restarts=status.get("restarts") or 0,
        workspace=status.get("workspace") or "",
        stages=stages,
        current=running,
        percentage=fresh.get("percentage") or 0,
        eta=fresh.get("eta") or "",
        step=fresh.get("step"),
        total_steps=fresh.get("totalSteps"),
        loss=fresh.get("loss") or "",
    )


def _stage(name: str, stage: Mapping[str, Any] | None) -> StageView:
    if stage is None:
        return StageView(name=name, state=StageState.PENDING.value)
    attempts = stage.get("attempts") or []
    failed = [attempt for attempt in attempts if attempt.get("state") == AttemptState.FAILED.value]
    started = _time(attempts[0].get("startedAt")) if attempts else None
    finished = _time(attempts[-1].get("finishedAt")) if attempts else None
    return StageView(
        name=name,
        state=stage.get("state") or StageState.PENDING.value,
        reason=stage.get("reason") or "",
        message=stage.get("message") or "",
        child=attempts[-1]["child"] if attempts else "",
        attempts=len(attempts),
        failed=len(failed),
        failure=f"attempt {failed[-1]['number']}: {failed[-1].get('message') or failed[-1].get('reason')}"
        if failed
        else "",
        seconds=(finished - started).total_seconds() if started and finished else None,
        started=started,
        counts=stage.get("counts"),
    )


def _failure(attempt: Mapping[str, Any]) -> str:
    return f"attempt {attempt['number']}: {attempt.get('message') or attempt.get('reason')}"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
