# SPDX-License-Identifier: Apache-2.0
"""What the operator tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kinema_api.status import Phase
from kinema_operator.observed import Raw
from kinema_operator.queue import Queue
from kinema_operator.store import Store
from kinema_operator.watches import Watches

disable_created_metrics()  # type: ignore[no-untyped-call]

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
        Info("kinema_build", "What runs here", registry=self.registry).info({"version": version("kinema-operator")})

    def watch(self, *, store: Store, queue: Queue, watches: Watches) -> None:
        """Read these at each scrape, so that no series outlives what it speaks about."""
        self.registry.register(_Snapshot(store, queue, watches))

    def ended(self, *, before: Raw, after: Raw) -> None:
        """Count the attempts that ended between two statuses of a job."""
        for key in _ended(after) - _ended(before):
            self.attempts.labels(stage=key[0], result=key[2].lower()).inc()

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

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        phases = self._store.phases()
        phases[Phase.PENDING.value] += phases.pop("", 0)
        jobs = GaugeMetricFamily("kinema_jobs", "Jobs, by phase", labels=["phase"])
        for phase in Phase:
            jobs.add_metric([phase.value], phases[phase.value])
        yield jobs
        yield GaugeMetricFamily("kinema_queue_depth", "Jobs that wait for a worker", value=len(self._queue))
        yield GaugeMetricFamily("kinema_queue_delayed", "Jobs that wait for their time", value=self._queue.delayed)
        ages = GaugeMetricFamily(
            "kinema_watch_age_seconds", "Seconds since a watch last showed life", labels=["resource"]
        )
        for resource, age in self._watches.ages(time.monotonic()).items():
            ages.add_metric([resource], age)
        yield ages


def _ended(status: Raw) -> set[tuple[str, int, str]]:
    return {
        (stage["name"], attempt["number"], attempt["state"])
        for stage in status.get("stages") or ()
        for attempt in stage.get("attempts") or ()
        if attempt.get("state") != "Running"
    }


def _verb(method: str, query: Any) -> str:
    return "WATCH" if query.get("watch") == "true" else method
