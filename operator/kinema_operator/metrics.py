# SPDX-License-Identifier: Apache-2.0
"""What the operator tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import aiohttp
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kinema_api.status import AttemptState, Phase, Seconds
from kinema_operator.job_metrics import SHAPES, JobSeries, pool_families
from kinema_operator.ledgers import HOUR, accelerator_seconds, holding
from kinema_operator.observed import Raw
from kinema_operator.queue import Queue
from kinema_operator.store import Store
from kinema_operator.watches import Watches

disable_created_metrics()  # type: ignore[no-untyped-call]

_TERMINAL = frozenset(phase.value for phase in Phase if phase.terminal)
_ACTIVITIES = tuple(name for name in Seconds.model_fields if name != "queued")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters and histograms; each operator process has one of these."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "kinema_reconciles", "Looks at a job, by how they went", ["result"], registry=self.registry
        )
        self.seconds = Histogram(
            "kinema_reconcile_seconds", "Duration of a look at a job", buckets=_SECONDS, registry=self.registry
        )
        self.latency = Histogram(
            "kinema_queue_latency_seconds", "Wait of a job in the queue", buckets=_SECONDS, registry=self.registry
        )
        self.attempts = Counter(
            "kinema_attempts", "Attempts that ended, by stage and result", ["stage", "result"], registry=self.registry
        )
        self.failures = Counter(
            "kinema_attempt_failures",
            "Attempts that failed, by stage and class of failure",
            ["stage", "failure"],
            registry=self.registry,
        )
        self.ends = Counter("kinema_jobs_ended", "Jobs that ended, by phase", ["phase"], registry=self.registry)
        self.spent = Counter(
            "kinema_accelerator_seconds",
            "Time of accelerators in attempts that ended, by what it went to; all but productive is wasted",
            ["pool", "activity"],
            registry=self.registry,
        )
        self.cost = Counter(
            "kinema_cost",
            "Price of that time, where the pool has one",
            ["pool", "currency", "activity"],
            registry=self.registry,
        )
        self.requests = Counter(
            "kinema_api_requests",
            "Requests to the Kubernetes API server, by verb and HTTP status; 0: no answer",
            ["verb", "code"],
            registry=self.registry,
        )
        self.resyncs = Counter(
            "kinema_resyncs", "Full comparisons with the API server", ["result"], registry=self.registry
        )
        self.refused = Gauge(
            "kinema_namespaces_refused",
            "Namespaces that are to be watched and that the API server refuses",
            registry=self.registry,
        )
        self.leader = Gauge("kinema_leader", "1 while this replica leads", registry=self.registry)
        self.definitions = Gauge(
            "kinema_definitions_confirmed",
            "1 once this replica leads and the installed CRDs were found to be its own, or may not be read",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        Info("kinema_build", "What runs here", registry=self.registry).info({"version": version("kinema-operator")})

    def watch(self, *, store: Store, queue: Queue, watches: Watches) -> None:
        """Read these at each scrape, so that no series outlives what it speaks about."""
        self.registry.register(_Snapshot(store, queue, watches))

    def ended(self, *, job: Raw, after: Raw) -> None:
        """Count what ended between a job and its next status."""
        before = job.get("status") or {}
        ended = _ended(after) - _ended(before)
        for stage, _, state, failure in sorted(ended):
            self.attempts.labels(stage=stage, result=state.lower()).inc()
            if state == AttemptState.FAILED.value:
                self.failures.labels(stage=stage, failure=failure).inc()
        for stage in sorted({item[0] for item in ended})[:1]:
            self._spend({**job, "status": after}, before, stage)
        phase = str(after.get("phase") or "")
        if phase in _TERMINAL and before.get("phase") != phase:
            self.ends.labels(phase=phase).inc()

    def _spend(self, job: Raw, before: Raw, stage: str) -> None:
        """Count what the attempts of a stage used; attempts of two stages never end together."""
        held, used = holding(job, stage), accelerator_seconds(before)
        if not held.pool:
            return
        for activity, seconds in {**dict.fromkeys(_ACTIVITIES, 0.0), **accelerator_seconds(job["status"])}.items():
            more = max(0.0, seconds - used.get(activity, 0.0))
            self.spent.labels(pool=held.pool, activity=activity).inc(more)
            if held.price is not None:
                cost = more * held.price / HOUR
                self.cost.labels(pool=held.pool, currency=held.currency, activity=activity).inc(cost)

    def trace(self) -> aiohttp.TraceConfig:
        """Counts every request of an HTTP session."""

        async def ended(_: Any, __: SimpleNamespace, done: aiohttp.TraceRequestEndParams) -> None:
            self.requests.labels(verb=_verb(done.method, done.url.query), code=done.response.status).inc()

        async def broke(_: Any, __: SimpleNamespace, broken: aiohttp.TraceRequestExceptionParams) -> None:
            self.requests.labels(verb=_verb(broken.method, broken.url.query), code=0).inc()

        config = aiohttp.TraceConfig()
        config.on_request_end.append(ended)
        config.on_request_exception.append(broke)
        return config


class _Snapshot(Collector):
    """Gauges that are read off the live objects."""

    def __init__(self, store: Store, queue: Queue, watches: Watches) -> None:
        self._store = store
        self._queue = queue
        self._watches = watches
        self._series = JobSeries(store)

    def describe(self) -> Iterator[Metric]:
        yield from (_jobs(), _depth(), _delayed(), _ages())
        yield from (shape.empty() for shape in SHAPES)
        yield from pool_families()

    def collect(self) -> Iterator[Metric]:
        phases = self._store.phases()
        phases[Phase.PENDING.value] += phases.pop("", 0)
        jobs, depth, delayed, ages = _jobs(), _depth(), _delayed(), _ages()
        for phase in Phase:
            jobs.add_metric([phase.value], phases[phase.value])
        depth.add_metric([], len(self._queue))
        delayed.add_metric([], self._queue.delayed)
        for resource, age in self._watches.ages(time.monotonic()).items():
            ages.add_metric([resource], age)
        yield from (jobs, depth, delayed, ages)
        yield from self._series.collect()


def _jobs() -> GaugeMetricFamily:
    return GaugeMetricFamily("kinema_jobs", "Jobs, by phase", labels=["phase"])


def _depth() -> GaugeMetricFamily:
    return GaugeMetricFamily("kinema_queue_depth", "Jobs that wait for a worker", labels=[])


def _delayed() -> GaugeMetricFamily:
    return GaugeMetricFamily("kinema_queue_delayed", "Jobs that wait for their time", labels=[])


def _ages() -> GaugeMetricFamily:
    return GaugeMetricFamily("kinema_watch_age_seconds", "Seconds since a watch last showed life", labels=["resource"])


def _ended(status: Raw) -> set[tuple[str, int, str, str]]:
    return {
        (stage["name"], attempt["number"], attempt["state"], str(attempt.get("failure") or ""))
        for stage in status.get("stages") or ()
        for attempt in stage.get("attempts") or ()
        if attempt.get("state") != AttemptState.RUNNING.value
    }


def _verb(method: str, query: Any) -> str:
    return "WATCH" if query.get("watch") == "true" else method
