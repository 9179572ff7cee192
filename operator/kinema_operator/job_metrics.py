# SPDX-License-Identifier: Apache-2.0
"""Series of single jobs, made from the store at each scrape, so that none outlives its job.

A job has series while it is under way and for an hour after its end, long enough for the last numbers to be seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kinema_api.pool import Accelerator
from kinema_api.status import StageState
from kinema_operator import ledgers
from kinema_operator.ledgers import Bill
from kinema_operator.observed import Raw
from kinema_operator.store import Store

SHOWN_AFTER_END = 3600.0
"""Seconds for which an ended job keeps its series."""
STATES = {state.value: number for number, state in enumerate(StageState)}
"""The number of a stage's state: 0 Pending, 1 Running, 2 Succeeded, 3 Skipped, 4 Failed."""
_JOB = ("namespace", "vtj")

Labels = tuple[str, ...]
Family = GaugeMetricFamily | CounterMetricFamily


@dataclass(frozen=True, slots=True)
class Shape:
    """A metric: its name, what it says, its labels after those of the job, and whether it only rises."""

    name: str
    text: str
    labels: Labels = ()
    counter: bool = False

    def empty(self) -> Family:
        """Without series."""
        kind = CounterMetricFamily if self.counter else GaugeMetricFamily
        return kind(self.name, self.text, labels=[*_JOB, *self.labels])


INFO = Shape("kinema_job_info", "What a job is and where it stands", ("model", "phase", "stage", "pool"))
STAGE = Shape("kinema_job_stage_state", "A stage: 0 pending, 1 running, 2 succeeded, 3 skipped, 4 failed", ("stage",))
RESTARTS = Shape("kinema_job_restarts", "Failed attempts over all stages", counter=True)
FAILURE = Shape(
    "kinema_job_last_failure", "The class of the last failed attempt; none while nothing failed", ("stage", "failure")
)
PROGRESSING = Shape("kinema_job_progressing", "1 while the running attempt moves, 0 when it stalls; none: not known")
PROGRESS = Shape("kinema_job_progress_ratio", "How much of the running stage is done", ("stage",))
ETA = Shape("kinema_job_eta_seconds", "Estimated time that is left of the running stage", ("stage",))
TOLD = Shape("kinema_job_progress_timestamp_seconds", "When the running stage last said how far it is (Unix time)")
LOSS = Shape("kinema_job_loss", "Training loss that the job showed last, to four digits")
QUEUED = Shape(
    "kinema_job_queued_timestamp_seconds", "Since when an attempt waits for its pods to run (Unix time)", ("stage",)
)
HELD = Shape("kinema_job_accelerators", "Accelerators that the running attempt holds", ("pool",))
SECONDS = Shape(
    "kinema_job_seconds",
    "Wall time of the attempts that are over: productive, queued, starting, data, checkpoint, lost",
    ("activity",),
    counter=True,
)
DEVICE_SECONDS = Shape(
    "kinema_job_accelerator_seconds", "The same but queued, times the accelerators held", ("activity",), counter=True
)
COST = Shape("kinema_job_cost", "Price of the accelerators that the job has held so far", ("currency",))
SHAPES = (
    INFO, STAGE, RESTARTS, FAILURE, PROGRESSING, PROGRESS, ETA, TOLD, LOSS, QUEUED, HELD, SECONDS, DEVICE_SECONDS, COST,
)  # fmt: skip
"""Every metric of a job."""
_TRUTHS = {"True": 1.0, "False": 0.0}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is shown of a job."""

    version: int
    job: Labels
    series: tuple[tuple[Shape, Labels, float], ...]
    bills: dict[str, Bill] = field(default_factory=dict)


def facts(job: Raw, *, version: int) -> Facts:
    """What is shown of a job."""
    metadata: Raw = job["metadata"]
    status: Raw = job.get("status") or {}
    series = [*_standing(job, status), *_progress(status), *_attempt(job)]
    wall = ledgers.seconds(status)
    # The status leaves out what is nothing, as all is on a cpu pool; a series begins at 0.
    held = {**dict.fromkeys((name for name in wall if name != "queued"), 0.0), **ledgers.accelerator_seconds(status)}
    for shape, told in ((SECONDS, wall), (DEVICE_SECONDS, held)):
        series += [(shape, (activity,), value) for activity, value in told.items()]
    return Facts(
        version=version,
        job=(str(metadata["namespace"]), str(metadata["name"])),
        series=tuple(series),
        bills=ledgers.bills(job),
    )


def _standing(job: Raw, status: Raw) -> Iterator[tuple[Shape, Labels, float]]:
    spec: Raw = job.get("spec") or {}
    model = str((spec.get("model") or {}).get("name") or "")
    phase, stage = str(status.get("phase") or "Pending"), str(status.get("stage") or "")
    pool = str((spec.get("defaults") or {}).get("pool") or "")
    yield INFO, (model, phase, stage, pool), 1.0
    yield RESTARTS, (), float(status.get("restarts") or 0)
    for item in ledgers.stages(job):
        if item.get("state") in STATES:
            yield STAGE, (str(item["name"]),), float(STATES[item["state"]])
    failed = [
        (str(attempt.get("finishedAt") or ""), str(item["name"]), str(attempt["failure"]))
        for item in ledgers.stages(job)
        for attempt in item.get("attempts") or ()
        if attempt.get("failure")
    ]
    if failed:
        yield FAILURE, max(failed)[1:], 1.0
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Progressing" and condition.get("status") in _TRUTHS:
            yield PROGRESSING, (), _TRUTHS[condition["status"]]


def _progress(status: Raw) -> Iterator[tuple[Shape, Labels, float]]:
    told: Raw = status.get("progress") or {}
    stage = str(told.get("stage") or "")
    if not stage:
        return
    yield PROGRESS, (stage,), float(told.get("percentage") or 0) / 100
    if told.get("etaSeconds") is not None:
        yield ETA, (stage,), float(told["etaSeconds"])
    if told.get("updatedAt"):
        yield TOLD, (), ledgers.moment(told["updatedAt"])
    try:
        yield LOSS, (), float(told["loss"])
    except (KeyError, TypeError, ValueError):
        # Stages before the training have none, and what another trainer sends need be no number.
        return


def _attempt(job: Raw) -> Iterator[tuple[Shape, Labels, float]]:
    found = ledgers.running(job)
    if found is None:
        return
    stage, attempt = found
    if attempt.get("runningAt"):
        held = ledgers.holding(job, stage)
        yield HELD, (held.pool,), float(held.devices)
    elif attempt.get("startedAt"):
        yield QUEUED, (stage,), ledgers.moment(attempt["startedAt"])


class JobSeries:
    """The series of the jobs of a store. A job is read again only when it has changed."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, Facts] = {}

    def collect(self) -> Iterator[Metric]:
        """The series, for a scrape."""
        now = self._clock()
        self._learn(now)
        families = {shape: shape.empty() for shape in SHAPES}
        for known in self._known.values():
            for shape, labels, value in known.series:
                families[shape].add_metric([*known.job, *labels], value)
            for currency, bill in known.bills.items():
                families[COST].add_metric([*known.job, currency], bill.at(now))
        yield from families.values()
        yield from _pools(self._store)

    def _learn(self, now: float) -> None:
        shown: dict[str, Facts] = {}
        for uid, version in self._store.active(ended_after=now - SHOWN_AFTER_END):
            known = self._known.get(uid)
            if known is not None and known.version == version:
                shown[uid] = known
            elif (job := self._store.job(uid)) is not None:
                shown[uid] = facts(job, version=version)
        self._known = shown


POOL_DEVICES = ("kinema_pool_accelerators", "Accelerators of a pool, by its description; 0 for a cpu pool")
POOL_PRICE = ("kinema_pool_price", "Price of one accelerator of a pool for an hour")


def pool_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    """The metrics of pools without series."""
    return (
        GaugeMetricFamily(*POOL_DEVICES, labels=["pool", "accelerator"]),
        GaugeMetricFamily(*POOL_PRICE, labels=["pool", "currency"]),
    )


def _pools(store: Store) -> Iterator[Metric]:
    devices, prices = pool_families()
    for name, pool in store.pools().items():
        spec: Raw = pool.get("spec") or {}
        kind = str(spec.get("accelerator") or "")
        count = 0 if kind == Accelerator.CPU.value else int(spec.get("nodes") or 100) * int(spec["devicesPerNode"])
        devices.add_metric([name, kind], float(count))
        price: Raw = spec.get("prices") or {}
        if "deviceHour" in price:
            prices.add_metric([name, str(price.get("currency") or "USD")], float(price["deviceHour"]))
    yield devices
    yield prices
