# SPDX-License-Identifier: Apache-2.0
"""The ledger: what the time of an attempt went to, in seconds and in accelerator-hours. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from kinema_api.names import Stage
from kinema_api.pool import Accelerator
from kinema_api.status import Attempt, AttemptState, Progress, Seconds, Usage
from kinema_operator.manifests import AttemptPlan
from kinema_operator.stall import number
from kinema_operator.status import parse_time

_KNOWN = ("starting", "data", "checkpoint", "productive")
"""What a stage accounts for itself, in the order in which it is believed when there is more of it than time."""
_MILLI = Decimal("0.001")


def accounted(
    attempt: Attempt, *, ran_from: datetime | None, told: Mapping[str, int] | None, progress: Progress | None
) -> Seconds:
    """What the time of an attempt that is over went to; the sum is its wall time.

    Args:
        attempt: the attempt; it has ended.
        ran_from: when its last pod started; None when not all of them did.
        told: what the stage accounted for in its last message; None when it left none.
        progress: what the attempt pushed last, for one that could leave no message.
    """
    begin = parse_time(attempt.started_at)
    end = max(begin, parse_time(attempt.finished_at)) if attempt.finished_at else begin
    wall = int((end - begin).total_seconds())
    if ran_from is None:
        return Seconds(queued=wall)
    queued = min(wall, max(0, int((ran_from - begin).total_seconds())))
    left = wall - queued
    worked = attempt.state is AttemptState.SUCCEEDED
    said = dict(told or {}) or _pushed(progress, saved=not worked)
    if worked and not said:
        return Seconds(queued=queued, productive=left)
    seconds = {"queued": queued}
    for name in _KNOWN:
        seconds[name] = min(left, max(0, said.get(name, 0)))
        left -= seconds[name]
    if worked:
        # Nothing is lost: what is left went to starting the interpreter and ending the pod.
        seconds["starting"] += left
        left = 0
    return Seconds(**seconds, lost=left)


def _pushed(progress: Progress | None, *, saved: bool) -> dict[str, int]:
    """The seconds that an attempt pushed; of work that was cut off, only what a checkpoint holds is productive."""
    pushed = {name: int(number(progress, f"seconds_{name}") or 0) for name in _KNOWN}
    if saved:
        pushed["productive"] = min(pushed["productive"], int(number(progress, "seconds_saved") or 0))
    return pushed if any(pushed.values()) else {}


def accelerators(plan: AttemptPlan) -> int:
    """Accelerators that an attempt holds while it runs; none on a cpu pool."""
    pool = plan.pool
    if pool is None or pool.accelerator is Accelerator.CPU:
        return 0
    pods = {Stage.TRAIN: plan.nodes, Stage.FEATURES: plan.stages.features.workers}.get(plan.stage, 1)
    return plan.devices * pods


def added(usage: Usage, seconds: Seconds, devices: int) -> Usage:
    """The ledger with one more attempt, which held that many accelerators."""
    before, more = usage.seconds.model_dump(), seconds.model_dump()
    hours = dict(usage.accelerator_hours)
    for name in (name for name in more if name != "queued" and more[name] * devices):
        total = Decimal(hours.get(name, "0")) + Decimal(more[name] * devices) / 3600
        hours[name] = str(total.quantize(_MILLI))
    total_seconds = Seconds(**{name: before[name] + more[name] for name in more})
    return usage.model_copy(update={"seconds": total_seconds, "accelerator_hours": hours})
