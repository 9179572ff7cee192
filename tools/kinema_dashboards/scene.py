# SPDX-License-Identifier: Apache-2.0
"""A rehearsal: the registries of operator, server and stages with a few jobs that move, for a Prometheus to scrape.

The registries are those of the programs, set by the calls that set them there; only the jobs are made up.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from kinema_api.names import Stage
from kinema_dashboards.live import Target, free_port
from kinema_kube.resources import TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_operator.metrics import Metrics
from kinema_operator.queue import Queue
from kinema_operator.status import timestamp
from kinema_operator.store import Store
from kinema_operator.watches import Watches
from kinema_server import metrics as server
from kinema_stage.ledger import Spent
from kinema_stage.progress import ENV_METRICS_PORT, Account, Progress

Raw = dict[str, Any]
NAMESPACE, NAME = "team", "wan"
VALUES: Mapping[str, str] = {
    "namespace": NAMESPACE, "vtj": NAME, "job": "kinema-operator|kinema-server", "instance": ".+",
    "__rate_interval": "15s", "__range": "10m",
}  # fmt: skip
"""What the dashboards' variables stand for here."""
STEPS = 400
RANKS = 16


def _pool(name: str, accelerator: str, nodes: int, price: float) -> Raw:
    prices = {"deviceHour": price, "currency": "USD"}
    spec = {"accelerator": accelerator, "devicesPerNode": 8, "nodes": nodes, "prices": prices}
    return {"metadata": {"name": name, "uid": f"pool-{name}", "resourceVersion": "1"}, "spec": spec}


def _ago(seconds: float) -> str:
    return timestamp(datetime.fromtimestamp(time.time() - seconds, tz=UTC))


def _job(name: str, *, pool: str, model: str, status: Raw) -> Raw:
    resolved = {
        "pools": {pool: _pool(pool, "nvidia" if pool == "h100" else "ascend", 4, 2.5)["spec"]},
        "stages": {"train": {"nodes": 2, "devicesPerNode": 8}, "features": {"workers": 4}},
    }
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": f"uid-{name}", "resourceVersion": "10"},
        "spec": {"model": {"name": model}, "defaults": {"pool": pool}},
        "status": {"phase": "Running", "restarts": 0, **status, "resolved": resolved},
    }


def _done(stage: str, began: float, ended: float) -> Raw:
    attempt = {"number": 1, "state": "Succeeded", "startedAt": _ago(began), "runningAt": _ago(began - 20),
               "finishedAt": _ago(ended)}  # fmt: skip
    return {"name": stage, "state": "Succeeded", "attempts": [attempt]}


def training() -> Raw:
    """A job in its second attempt of training."""
    attempts = [
        {"number": 1, "state": "Failed", "failure": "Infrastructure", "startedAt": _ago(5000), "runningAt": _ago(4900),
         "finishedAt": _ago(900)},
        {"number": 2, "state": "Running", "startedAt": _ago(880), "runningAt": _ago(800)},
    ]  # fmt: skip
    stages = [
        _done("check", 8000, 7960), _done("features", 7950, 5050), {"name": "train", "state": "Running",
                                                                    "attempts": attempts},
        {"name": "export", "state": "Pending"}, {"name": "sample", "state": "Pending"},
    ]  # fmt: skip
    seconds = {"productive": 5600, "queued": 220, "starting": 640, "data": 90, "checkpoint": 40, "lost": 410}
    hours = {"productive": "18.400", "starting": "2.600", "data": "0.400", "checkpoint": "0.170", "lost": "1.800"}
    status: Raw = {
        "stage": "train", "restarts": 1, "stages": stages, "usage": {"seconds": seconds, "acceleratorHours": hours},
        "conditions": [{"type": "Progressing", "status": "True"}],
    }  # fmt: skip
    return _job(NAME, pool="h100", model="wan2.1-t2v-1.3b", status=status)


def waiting() -> Raw:
    """A job whose pods find no room."""
    attempt = {"number": 1, "state": "Running", "startedAt": _ago(1500)}
    stages = [_done("check", 1600, 1550), {"name": "features", "state": "Running", "attempts": [attempt]}]
    status: Raw = {"stage": "features", "stages": stages, "usage": {"seconds": {"queued": 12, "productive": 30}}}
    return _job("ink", pool="ascend", model="hunyuanvideo-t2v", status=status)


class Scene:
    """Moves with each `tick`."""

    def __init__(self) -> None:
        self.number = 0
        self.metrics, self.store = Metrics(), Store()
        self.watches = Watches(["videotrainingjobs", "jobs", "pytorchjobs", "trainingpools"])
        self.metrics.watch(store=self.store, queue=Queue(later=_never), watches=self.watches)
        self.metrics.leader.set(1)
        self.metrics.definitions.set(1)
        self.job = training()
        for pool in (_pool("h100", "nvidia", 4, 2.5), _pool("ascend", "ascend", 8, 1.2)):
            self.store.put(TRAINING_POOLS, pool)
        for job in (self.job, waiting(), _job("new", pool="h100", model="wan2.1-i2v-14b", status={"phase": "Pending"})):
            self.store.put(VIDEO_TRAINING_JOBS, job)
        self.stage_port = free_port()
        self.progress = Progress(Stage.TRAIN, environment={ENV_METRICS_PORT: str(self.stage_port)})
        self.exporters = _Exporters()
        self.spent = Spent()

    def tick(self) -> None:
        """A second goes by, and a step with it."""
        self.number += 1
        self._operator()
        self._server()
        self._stage()
        self.exporters.set(self.number)

    def _operator(self) -> None:
        metrics, number = self.metrics, self.number
        for result, every in (("ok", 1), ("stale", 7), ("error", 23)):
            if number % every == 0:
                metrics.reconciles.labels(result=result).inc()
        metrics.seconds.observe(0.02 + 0.01 * (number % 5))
        metrics.latency.observe(0.001 * (1 + number % 9))
        for verb, code, every in (("GET", 200, 1), ("PATCH", 200, 2), ("WATCH", 200, 9), ("PATCH", 409, 11)):
            if number % every == 0:
                metrics.requests.labels(verb=verb, code=code).inc()
        if number % 10 == 1:
            metrics.resyncs.labels(result="ok").inc()
        for resource in ("videotrainingjobs", "jobs", "pytorchjobs", "trainingpools"):
            if number % 13 == 0:
                self.watches.beat(resource)
        if number % 30 == 1:
            self._end()
        told = {"stage": "train", "attempt": 2, "percentage": 100 * number // STEPS, "etaSeconds": STEPS - number,
                "loss": f"{_loss(number):.4g}", "updatedAt": timestamp(datetime.now(UTC))}  # fmt: skip
        self.job["status"]["progress"] = told
        self.job["metadata"]["resourceVersion"] = str(10 + number)
        self.store.put(VIDEO_TRAINING_JOBS, self.job)

    def _end(self) -> None:
        """An attempt of another job ends, and then the job."""
        before = copy.deepcopy(self.job)
        after = copy.deepcopy(before["status"])
        failed = self.number // 30 % 2 == 0
        change = {"state": "Failed", "failure": "Communication"} if failed else {"state": "Succeeded"}
        after["stages"][2]["attempts"][1] |= change
        hours = after["usage"]["acceleratorHours"]
        hours["productive"], hours["lost"] = "18.900", "1.900" if failed else "1.800"
        after["phase"] = "Failed" if failed else "Succeeded"
        self.metrics.ended(job=before, after=after)

    def _server(self) -> None:
        number = self.number
        for method, route, code, every in (
            ("POST", "/v1alpha1/.../progress", 200, 1),
            ("GET", "/v1alpha1/namespaces/{namespace}/videotrainingjobs", 200, 2),
            ("GET", "/v1alpha1/namespaces/{namespace}/videotrainingjobs/{name}", 404, 9),
        ):
            if number % every == 0:
                server.REQUESTS.labels(method=method, route=route, code=str(code)).inc()
                server.SECONDS.labels(method=method, route=route).observe(0.004 * (1 + number % 6))
        for result, every in (("written", 2), ("failed", 17)):
            if number % every == 0:
                server.WRITES.labels(result=result).inc()
        for result, every in (("remembered", 1), ("granted", 10), ("refused", 19)):
            if number % every == 0:
                server.VERDICTS.labels(result=result).inc()
        server.STREAMS.set(2 + number // 20 % 3)
        if number % 30 == 1:
            server.READERS.labels(result="created").inc()
        server.CERTIFICATE_END.set(time.time() + 60 * 86_400)

    def _stage(self) -> None:
        number = self.number
        slow = 0.15 if 60 <= number % 200 < 100 else 0.0
        data = 0.02 + 0.6 * slow
        phases = {"data": data, "wait": 0.02 + slow, "forward": 0.3, "backward": 0.55, "optimizer": 0.06,
                  "checkpoint": 0.3 if number % 50 == 0 else 0.0}  # fmt: skip
        step = sum(phases.values())
        before = self.spent
        self.spent = Spent(
            starting=45.0,
            productive=before.productive + 0.98 - data,
            data=before.data + data,
            checkpoint=before.checkpoint + 0.006,
            saved=before.productive if number % 50 == 0 else before.saved,
        )
        spent = self.spent
        self.progress.account = lambda: Account(spent=spent, stall_limit=120.0)
        self.progress.report(
            done=number,
            total=STEPS,
            metrics={
                "loss": _loss(number), "validation_loss": 1.05 * _loss(number - number % 25),
                "validation_loss_at_2500": 1.6 * _loss(number - number % 25),
                "validation_loss_at_7500": 0.5 * _loss(number - number % 25), "memory_planned_bytes": 5.8e10,
                "learning_rate": 1e-4 * min(1.0, number / 40) * (0.5 + 0.5 * math.cos(math.pi * number / STEPS)),
                "grad_norm": 0.4 + 2.0 * math.exp(-number / 60) + 0.1 * math.sin(number), "step_seconds": step,
                **{f"{name}_seconds": value for name, value in phases.items()},
                "samples_per_second": 16 / step, "tokens_per_second": 16 * 32_760 / step, "samples": 16 * number,
                "tokens": 16 * 32_760, "padding": 0.03 + 0.01 * math.sin(number / 9), "imbalance": 0.04,
                "tflops_per_second": 430 / step, "mfu": 0.43 / step, "hfu": 0.52 / step,
                "ranks_data_seconds_max": data + slow, "ranks_data_seconds_median": data,
                "ranks_probe_seconds_max": 0.0021, "ranks_probe_seconds_median": 0.002,
                "straggler_rank": 13.0 if slow else -1.0,
            },
            ranks={"memory_peak_bytes": [6.1e10 + 2e8 * (rank % 5) for rank in range(RANKS)]},
        )  # fmt: skip


def _loss(number: int) -> float:
    return 0.06 + 0.9 * math.exp(-number / 70) + 0.01 * math.sin(number * 1.7)


def _never(_: float, __: Any) -> Any:
    raise AssertionError("nothing is put off here")


class _Exporters:
    """What DCGM's exporter and npu-exporter say of the nodes: recorded samples, moved a little."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        gpu = ("gpu", "UUID", "Hostname", "exported_namespace", "exported_pod")
        npu = ("id", "vdie_id", "exported_namespace", "pod_name")
        self.gpus = {
            name: Gauge(name, name, gpu, registry=self.registry)
            for name in (
                "DCGM_FI_DEV_GPU_UTIL",
                "DCGM_FI_DEV_FB_USED",
                "DCGM_FI_DEV_POWER_USAGE",
                "DCGM_FI_DEV_GPU_TEMP",
            )
        }
        self.npus = {
            name: Gauge(name, name, npu, registry=self.registry)
            for name in ("npu_chip_info_utilization", "npu_chip_info_hbm_used_memory", "npu_chip_info_power",
                         "npu_chip_info_temperature")
        }  # fmt: skip

    def set(self, number: int) -> None:
        """New samples."""
        for rank in range(RANKS):
            wave = math.sin(number / 7 + rank)
            pod = f"{NAME}-train-2-{'master-0' if rank < 8 else 'worker-0'}"
            values = (93 + 4 * wave, 61_000 + 40 * rank, 610 + 30 * wave, 61 + 3 * wave)
            for gauge, value in zip(self.gpus.values(), values, strict=True):
                gauge.labels(str(rank % 8), f"GPU-{rank}", f"node-{rank // 8}", NAMESPACE, pod).set(value)
        for device in range(4):
            wave = math.sin(number / 5 + device)
            for gauge, value in zip(self.npus.values(), (70 + 9 * wave, 41_000, 280 + 9 * wave, 55), strict=True):
                gauge.labels(str(device), f"D{device}", NAMESPACE, f"ink-features-1-{device}-x").set(value)


@contextlib.contextmanager
def served() -> Iterator[tuple[Scene, list[Target]]]:
    """The scene behind its ports, and what a Prometheus must be told of them."""
    scene = Scene()
    scene.tick()
    parts = [start_http_server(0, addr="127.0.0.1", registry=registry) for registry in _registries(scene)]
    ports = [part.server_port for part, _ in parts]
    stage = {"namespace": NAMESPACE, "vtj": NAME, "pod": f"{NAME}-train-2-master-0", "attempt": "2"}
    targets = [
        Target("kinema-operator", ports[0], honours=True),
        Target("kinema-server", ports[1]),
        Target("exporters", ports[2], {"namespace": "monitoring", "pod": "exporter-x"}),
        Target("kinema-stages", scene.stage_port, stage),
    ]
    try:
        yield scene, targets
    finally:
        scene.progress.close(success=False)
        for part, thread in parts:
            part.shutdown()
            part.server_close()
            thread.join()


def _registries(scene: Scene) -> tuple[CollectorRegistry, ...]:
    from prometheus_client import REGISTRY

    return scene.metrics.registry, REGISTRY, scene.exporters.registry
