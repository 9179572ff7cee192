# SPDX-License-Identifier: Apache-2.0
"""Series of single jobs and the counters of the fleet, from statuses as the operator writes them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.plan import freeze
from kinema_api.pool import PoolSpec
from kinema_api.stage import JobRef
from kinema_kube.resources import TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_operator.job_metrics import SHOWN_AFTER_END, JobSeries
from kinema_operator.ledgers import holding
from kinema_operator.manifests import AttemptPlan
from kinema_operator.metrics import Metrics
from kinema_operator.queue import Queue
from kinema_operator.status import timestamp
from kinema_operator.store import Store
from kinema_operator.usage import accelerators
from kinema_operator.watches import Watches

from tests.unit.decide.story import JOB, KEYS, PLATFORM
from tests.unit.operator.clock import Clock
from tests.unit.operator.fakes import job, pool

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
Raw = dict[str, Any]


def ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


GPU: Raw = {
    "accelerator": "nvidia", "devicesPerNode": 8, "nodes": 4, "prices": {"deviceHour": 3.6, "currency": "EUR"}
}  # fmt: skip
RUNNING: Raw = {
    "phase": "Running",
    "stage": "train",
    "restarts": 1,
    "conditions": [{"type": "Progressing", "status": "True"}, {"type": "Running", "status": "True"}],
    "stages": [
        {"name": "check", "state": "Succeeded", "attempts": [
            {"number": 1, "state": "Succeeded", "startedAt": ago(7300), "runningAt": ago(7290),
             "finishedAt": ago(7280)},
        ]},
        {"name": "train", "state": "Running", "attempts": [
            {"number": 1, "state": "Failed", "failure": "Stalled", "startedAt": ago(7200), "runningAt": ago(7100),
             "finishedAt": ago(3500)},
            {"number": 2, "state": "Running", "startedAt": ago(1100), "runningAt": ago(1000)},
        ]},
    ],
    "resolved": {
        "pools": {"gpu": GPU},
        "stages": {"check": {}, "train": {"nodes": 2, "devicesPerNode": 8}, "features": {"workers": 3}},
    },
    "usage": {
        "seconds": {"queued": 100, "productive": 3000, "starting": 300, "data": 0, "checkpoint": 0, "lost": 300},
        "acceleratorHours": {"productive": "13.333", "starting": "1.333", "lost": "1.333"},
    },
    "progress": {"stage": "train", "attempt": 2, "percentage": 42, "etaSeconds": 90, "loss": "0.1234",
                 "updatedAt": ago(5)},
}  # fmt: skip


def raw(**changes: Any) -> Raw:
    item = job(status=copy.deepcopy(RUNNING) | changes)
    item["spec"]["defaults"] = {"pool": "gpu"}
    return item


def lines(collector: Any) -> set[str]:
    class Asked(Collector):
        def collect(self) -> Any:
            return collector.collect()

    registry = CollectorRegistry()
    registry.register(Asked())
    return {line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")}


def test_a_running_job_shows_where_it_stands_what_it_holds_and_what_it_costs() -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, raw())
    store.put(TRAINING_POOLS, {**pool("gpu"), "spec": GPU})
    store.put(TRAINING_POOLS, pool("cpu"))
    shown = lines(JobSeries(store, clock=NOW.timestamp))
    who = 'namespace="team",vtj="wan"'
    assert shown >= {
        'kinema_job_info{model="wan2.1-tiny",namespace="team",phase="Running",pool="gpu",stage="train",vtj="wan"} 1.0',
        'kinema_job_stage_state{namespace="team",stage="check",vtj="wan"} 2.0',
        'kinema_job_stage_state{namespace="team",stage="train",vtj="wan"} 1.0',
        f"kinema_job_restarts_total{{{who}}} 1.0",
        'kinema_job_last_failure{failure="Stalled",namespace="team",stage="train",vtj="wan"} 1.0',
        f"kinema_job_progressing{{{who}}} 1.0",
        'kinema_job_progress_ratio{namespace="team",stage="train",vtj="wan"} 0.42',
        'kinema_job_eta_seconds{namespace="team",stage="train",vtj="wan"} 90.0',
        f"kinema_job_loss{{{who}}} 0.1234",
        'kinema_job_accelerators{namespace="team",pool="gpu",vtj="wan"} 16.0',
        'kinema_job_seconds_total{activity="productive",namespace="team",vtj="wan"} 3000.0',
        'kinema_job_accelerator_seconds_total{activity="lost",namespace="team",vtj="wan"} 4798.8',
        'kinema_pool_accelerators{accelerator="nvidia",pool="gpu"} 32.0',
        'kinema_pool_accelerators{accelerator="cpu",pool="cpu"} 0.0',
        'kinema_pool_price{currency="EUR",pool="gpu"} 3.6',
    }
    (cost,) = [line for line in shown if line.startswith("kinema_job_cost{")]
    # 3,600 s of the first attempt and 1,000 s so far of the second, times 16 accelerators at 3.6 an hour.
    assert float(cost.rpartition(" ")[2]) == pytest.approx(4600 * 16 * 3.6 / 3600)
    assert not [line for line in shown if line.startswith("kinema_job_queued")]


def test_a_job_that_holds_no_accelerators_says_that_it_spent_none() -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, raw(usage={"seconds": {"queued": 9, "productive": 30, "lost": 0}}))
    shown = lines(JobSeries(store, clock=NOW.timestamp))
    assert {line for line in shown if line.startswith("kinema_job_accelerator_seconds_total{")} == {
        f'kinema_job_accelerator_seconds_total{{activity="{activity}",namespace="team",vtj="wan"}} 0.0'
        for activity in ("productive", "lost")
    }


def test_a_job_whose_pods_wait_says_since_when_and_one_that_stalls_says_so() -> None:
    store = Store()
    waiting = copy.deepcopy(RUNNING["stages"])
    del waiting[1]["attempts"][1]["runningAt"]
    store.put(VIDEO_TRAINING_JOBS, raw(stages=waiting, conditions=[{"type": "Progressing", "status": "False"}]))
    shown = lines(JobSeries(store, clock=NOW.timestamp))
    since = NOW.timestamp() - 1100
    (queued,) = [line for line in shown if line.startswith("kinema_job_queued_timestamp_seconds{")]
    assert float(queued.rpartition(" ")[2]) == since
    assert 'kinema_job_progressing{namespace="team",vtj="wan"} 0.0' in shown
    assert not [line for line in shown if line.startswith("kinema_job_accelerators{")]


@pytest.mark.parametrize("status", [None, {}, {"phase": "Pending"}, {"progress": {"stage": "train", "loss": "nan?"}}])
def test_a_job_that_says_little_is_shown_as_far_as_it_goes(status: Raw | None) -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, job(status=status))
    shown = lines(JobSeries(store))
    assert [line for line in shown if line.startswith("kinema_job_info{")]
    assert not [line for line in shown if line.startswith("kinema_job_loss{")]


def test_no_series_outlives_its_job_and_an_ended_one_goes_after_an_hour() -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, raw(phase="Succeeded", finishedAt=ago(60)))
    at = [NOW.timestamp()]
    series = JobSeries(store, clock=lambda: at[0])
    assert [line for line in lines(series) if 'phase="Succeeded"' in line]
    at[0] += SHOWN_AFTER_END
    assert not [line for line in lines(series) if "vtj=" in line]
    at[0] -= SHOWN_AFTER_END
    store.discard(VIDEO_TRAINING_JOBS, "u-1")
    assert not [line for line in lines(series) if "vtj=" in line]


def test_a_job_is_read_again_only_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    read: list[str] = []
    store.put(VIDEO_TRAINING_JOBS, raw())
    load = store.job

    def counted(uid: str) -> Raw | None:
        read.append(uid)
        return load(uid)

    monkeypatch.setattr(store, "job", counted)
    series = JobSeries(store, clock=NOW.timestamp)
    lines(series), lines(series)
    assert len(read) == 1
    changed = raw(restarts=2)
    changed["metadata"]["resourceVersion"] = "11"
    store.put(VIDEO_TRAINING_JOBS, changed)
    assert 'kinema_job_restarts_total{namespace="team",vtj="wan"} 2.0' in lines(series)
    assert len(read) == 2


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("accelerator", ["nvidia", "ascend", "cpu"])
def test_what_is_held_is_what_the_ledger_books(stage: Stage, accelerator: str) -> None:
    described = PoolSpec.model_validate({**GPU, "accelerator": accelerator})
    train, features = {"nodes": 2, "devicesPerNode": 4, "steps": 9}, {"workers": 3}
    spec = JobSpec.model_validate(
        {**JOB["spec"], "defaults": {"pool": "p"}, "stages": {"train": train, "features": features}}
    )
    images = {"stage": "s", f"wan2.1/{accelerator}": "w"}
    resolved = freeze(spec=spec, pools={"p": described}, images=images)
    plan = AttemptPlan(
        job=JobRef(namespace="team", name="wan", uid="u"), spec=spec, resolved=resolved,
        keys=Keys.stored(KEYS), stage=stage, number=1, platform=PLATFORM,
    )  # fmt: skip
    found = holding({"spec": spec.wire(), "status": {"resolved": resolved.wire()}}, stage.value)
    assert found.devices == accelerators(plan)
    assert bool(found.pool) == (plan.pool is not None)


def test_an_attempt_that_ends_is_counted_once_with_what_it_used() -> None:
    metrics = Metrics()
    before = raw()
    after = copy.deepcopy(RUNNING)
    after["stages"][1]["attempts"][1] |= {"state": "Failed", "failure": "Numerics", "finishedAt": ago(0)}
    after["usage"]["acceleratorHours"] |= {"productive": "14.333", "data": "0.5"}
    after["phase"] = "Failed"
    metrics.ended(job=before, after=after)
    metrics.ended(job={**before, "status": after}, after=after)
    value = metrics.registry.get_sample_value
    assert value("kinema_attempts_total", {"stage": "train", "result": "failed"}) == 1
    assert value("kinema_attempt_failures_total", {"stage": "train", "failure": "Numerics"}) == 1
    assert value("kinema_accelerator_seconds_total", {"pool": "gpu", "activity": "productive"}) == pytest.approx(3600)
    assert value("kinema_accelerator_seconds_total", {"pool": "gpu", "activity": "lost"}) == 0
    spent = {"pool": "gpu", "currency": "EUR", "activity": "data"}
    assert value("kinema_cost_total", spent) == pytest.approx(1.8)
    assert value("kinema_jobs_ended_total", {"phase": "Failed"}) == 1


def test_the_operators_registry_serves_all_of_it() -> None:
    clock, store, metrics = Clock(), Store(), Metrics()
    store.put(VIDEO_TRAINING_JOBS, raw())
    metrics.watch(store=store, queue=Queue(later=clock.later, clock=clock), watches=Watches(["jobs"]))
    text = generate_latest(metrics.registry).decode()
    for name in ("kinema_jobs{", "kinema_job_info{", "process_cpu_seconds_total", "kinema_job_cost{"):
        assert name in text
