# SPDX-License-Identifier: Apache-2.0
"""What a job holds and what that costs, read off the job as it is stored. Pure.

It runs at every scrape over every job that is under way, so that it reads the few fields it needs without the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kinema_api.names import Stage
from kinema_api.pipeline import CPU_STAGES, DEVICE_STAGES
from kinema_api.pool import Accelerator
from kinema_operator.observed import Raw
from kinema_operator.status import parse_time

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Holding:
    """What an attempt of a stage holds while it runs."""

    pool: str = ""
    """Empty when any node will do."""
    devices: int = 0
    """Accelerators; none on a cpu pool."""
    price: float | None = None
    """Of one accelerator for an hour, where the pool has one."""
    currency: str = ""

    @property
    def rate(self) -> float:
        """Price of a second."""
        return self.devices * (self.price or 0.0) / HOUR


def holding(job: Raw, stage: str) -> Holding:
    """What an attempt of a stage holds, from what the job has frozen; nothing before that."""
    resolved: Raw = (job.get("status") or {}).get("resolved") or {}
    settings: Raw = (resolved.get("stages") or {}).get(stage) or {}
    spec: Raw = job.get("spec") or {}
    own = None if stage in CPU_STAGES else (spec.get("defaults") or {}).get("pool")
    name = settings.get("pool") or own
    pool: Raw = (resolved.get("pools") or {}).get(name) or {}
    if not pool:
        return Holding(pool=str(name or ""))
    prices: Raw = pool.get("prices") or {}
    devices = 0
    if stage in DEVICE_STAGES and pool.get("accelerator") != Accelerator.CPU.value:
        pods = {Stage.TRAIN.value: settings.get("nodes"), Stage.FEATURES.value: settings.get("workers")}.get(stage)
        each = settings.get("devicesPerNode") if stage == Stage.TRAIN.value else 1
        devices = int(pods or 1) * int(each or 1)
    return Holding(
        pool=str(name), devices=devices, price=prices.get("deviceHour"), currency=str(prices.get("currency") or "USD")
    )


@dataclass(frozen=True, slots=True)
class Bill:
    """What a job costs in one currency: so much until now, or growing since an attempt began."""

    settled: float = 0.0
    rate: float = 0.0
    """A second, of the attempt that runs."""
    since: float = 0.0
    """Unix time at which it began to."""

    def at(self, now: float) -> float:
        """The cost at a Unix time."""
        return self.settled + self.rate * max(0.0, now - self.since)


def bills(job: Raw) -> dict[str, Bill]:
    """What the attempts that a job remembers cost, by currency; none where its pools have no prices."""
    found: dict[str, Bill] = {}
    for stage in stages(job):
        held = holding(job, stage["name"])
        if held.price is None:
            continue
        bill = found.get(held.currency, Bill())
        for attempt in stage.get("attempts") or ():
            if not attempt.get("runningAt"):
                continue
            begin = moment(attempt["runningAt"])
            if attempt.get("finishedAt"):
                bill = Bill(bill.settled + held.rate * max(0.0, moment(attempt["finishedAt"]) - begin), bill.rate,
                            bill.since)  # fmt: skip
            elif attempt.get("state") == "Running":
                bill = Bill(bill.settled, held.rate, begin)
        found[held.currency] = bill
    return found


def stages(job: Raw) -> list[Raw]:
    """The stages of a job's status."""
    found: list[Raw] = (job.get("status") or {}).get("stages") or []
    return found


def running(job: Raw) -> tuple[str, Raw] | None:
    """The stage and the attempt that run; None when none does."""
    for stage in stages(job):
        attempts: list[Raw] = stage.get("attempts") or []
        if attempts and attempts[-1].get("state") == "Running":
            return stage["name"], attempts[-1]
    return None


def moment(text: str) -> float:
    """Unix time of a time in a status."""
    found: datetime = parse_time(text)
    return found.timestamp()


def seconds(job_status: Raw) -> dict[str, float]:
    """Wall seconds of the attempts that are over, by what they went to."""
    told: dict[str, Any] = (job_status.get("usage") or {}).get("seconds") or {}
    return {name: float(value) for name, value in told.items()}


def accelerator_seconds(job_status: Raw) -> dict[str, float]:
    """The same, times the accelerators that were held."""
    told: dict[str, Any] = (job_status.get("usage") or {}).get("acceleratorHours") or {}
    return {name: float(value) * HOUR for name, value in told.items()}
