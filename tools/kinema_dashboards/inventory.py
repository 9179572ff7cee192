# SPDX-License-Identifier: Apache-2.0
"""Every metric that there is, read off the code that serves it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics import MetricWrapperBase as MetricWrapper
from prometheus_client.metrics_core import Metric

from kinema_dashboards.rules import RECORDINGS
from kinema_operator.metrics import Metrics
from kinema_operator.queue import Queue
from kinema_operator.store import Store
from kinema_operator.watches import Watches
from kinema_server import metrics as server
from kinema_stage import gauges

OPERATOR, SERVER, STAGE = "operator", "server", "stage pods"
FOREIGN = {
    "DCGM_FI_DEV_GPU_UTIL": "DCGM exporter",
    "DCGM_FI_DEV_FB_USED": "DCGM exporter",
    "DCGM_FI_DEV_POWER_USAGE": "DCGM exporter",
    "DCGM_FI_DEV_GPU_TEMP": "DCGM exporter",
    "npu_chip_info_utilization": "npu-exporter",
    "npu_chip_info_hbm_used_memory": "npu-exporter",
    "npu_chip_info_power": "npu-exporter",
    "npu_chip_info_temperature": "npu-exporter",
}
"""Series of others that the rules read, and who serves them."""
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "info": ("_info",)}
_PROCESS = ("process_", "python_")


@dataclass(frozen=True, slots=True)
class Entry:
    """A metric."""

    source: str
    name: str
    """As it is asked for: a counter ends in _total."""
    kind: str
    labels: tuple[str, ...]
    text: str

    @property
    def series(self) -> tuple[str, ...]:
        """The names that can be asked for."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(self.name + suffix for suffix in _SUFFIXES["histogram"])


def _entry(source: str, metric: Metric, labels: Iterable[str]) -> Entry:
    suffix = "" if metric.type == "histogram" else _SUFFIXES.get(metric.type, ("",))[0]
    return Entry(source, metric.name + suffix, metric.type, tuple(labels), metric.documentation)


def _collected(source: str, collectors: Iterable[Any]) -> Iterator[Entry]:
    """The metrics of collectors."""
    for found in collectors:
        if hasattr(found, "describe") and not hasattr(found, "_labelnames"):
            for metric in found.describe():
                yield _entry(source, metric, getattr(metric, "_labelnames", ()))
            continue
        labels: tuple[str, ...] = tuple(getattr(found, "_labelnames", ()))
        for metric in found.collect():
            shown = labels
            if not hasattr(found, "_labelnames"):
                shown = tuple(sorted({name for sample in metric.samples for name in sample.labels}))
            elif metric.type == "info":
                shown = ("version",)
            yield _entry(source, metric, shown)


def operator() -> list[Entry]:
    """What the operator serves."""
    metrics = Metrics()
    metrics.watch(store=Store(), queue=_queue(), watches=Watches())
    return _ordered(_collected(OPERATOR, list(metrics.registry._collector_to_names)))


def _queue() -> Queue:
    def never(_: float, __: Any) -> Any:
        raise AssertionError("nothing is queued here")

    return Queue(later=never)


def of_server() -> list[Entry]:
    """What the server serves."""
    return _ordered(_collected(SERVER, (value for value in vars(server).values() if isinstance(value, MetricWrapper))))


def of_stages() -> list[Entry]:
    """What the first process of each stage serves."""
    found = []
    for family in gauges.FAMILIES:
        metric = gauges.empty(family)
        found.append(_entry(STAGE, metric, ("stage", *family.labels)))
    return _ordered(found)


def _ordered(found: Iterable[Entry]) -> list[Entry]:
    """Ours by name; of the process only what a dashboard needs."""
    kept = [item for item in found if not item.name.startswith(_PROCESS)]
    return sorted(kept, key=lambda item: item.name)


PROCESS = (
    Entry("all", "process_cpu_seconds_total", "counter", (), "Processor time of the process"),
    Entry("all", "process_resident_memory_bytes", "gauge", (), "Memory of the process"),
    Entry("all", "process_start_time_seconds", "gauge", (), "When the process began (Unix time)"),
    Entry("all", "process_open_fds", "gauge", (), "Open files and connections of the process"),
)
"""What every process serves, by Prometheus's own client."""
UP = Entry("Prometheus", "up", "gauge", ("job", "instance"), "1 while a target answers")


def entries() -> list[Entry]:
    """Every metric but the recorded and foreign ones."""
    return [*operator(), *of_server(), *of_stages(), *PROCESS, UP]


def known() -> set[str]:
    """Every name that a query may ask for."""
    return {name for entry in entries() for name in entry.series} | {rule.name for rule in RECORDINGS} | set(FOREIGN)
