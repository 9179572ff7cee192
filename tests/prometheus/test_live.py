# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes the registries of operator, server and a stage: every panel and every rule has data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kinema_dashboards import live, scene
from kinema_dashboards.alerts import ALERTS, Alert
from kinema_dashboards.live import LiveError, Prometheus, Span
from kinema_dashboards.programs import Programs

from tests.waiting import until

SECONDS = 90.0
EVERY = 0.5


@pytest.fixture(scope="module")
def prometheus(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has seen the scene move until nothing was silent, or the time was up."""
    folder = tmp_path_factory.mktemp("prometheus")
    with scene.served() as (moving, targets), live.running(programs, folder, live.static(targets)) as found:

        def heard() -> bool:
            moving.tick()
            return moving.number % 8 == 0 and not live.silent(found, scene.VALUES)

        # What is silent then, a test says.
        with contextlib.suppress(AssertionError):
            until("something is silent", heard, seconds=SECONDS, poll=EVERY)
        yield found


def test_every_target_answers(prometheus: Prometheus) -> None:
    assert prometheus.healthy() == []


def test_every_panel_and_every_recorded_series_has_data(prometheus: Prometheus) -> None:
    assert live.silent(prometheus, scene.VALUES) == []


def test_what_only_accelerators_have_is_excused_and_nothing_else(prometheus: Prometheus) -> None:
    nobody = {**scene.VALUES, "vtj": "nobody", "namespace": "nowhere"}
    found = live.silent(prometheus, nobody)
    assert {bool(item.excused) for item in found} == {True, False}
    for item in found:
        assert bool(item.excused) == ("vtj:accelerator_" in item.expr), item


def test_what_had_data_within_a_time_is_not_silent_in_it(prometheus: Prometheus) -> None:
    now = time.time()
    gone = {item.expr for item in live.silent(prometheus, scene.VALUES, span=Span(now - 7200, now - 3600))}
    assert "vtj:goodput:ratio" in gone and 'kinema_reconciles_total{result!=""}' in gone
    assert live.silent(prometheus, scene.VALUES, span=Span(now - 3600, now)) == []


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_can_be_asked(prometheus: Prometheus, alert: Alert) -> None:
    prometheus.now(alert.expr)


def test_numbers_arrive_as_they_were_set(prometheus: Prometheus) -> None:
    (held,) = prometheus.now('kinema_job_accelerators{namespace="team", vtj="wan"}')
    assert held.labels["pool"] == "h100" and held.points[0][1] == 16
    (rate,) = prometheus.now('vtj:cost_rate:per_hour{vtj="wan"}')
    assert rate.points[0][1] == 40.0
    devices = prometheus.now('vtj:accelerator_util:ratio{vtj="wan"}')
    assert len(devices) == scene.RANKS and {item.labels["vendor"] for item in devices} == {"nvidia"}
    assert {item.labels["vendor"] for item in prometheus.now('vtj:accelerator_util:ratio{vtj="ink"}')} == {"ascend"}


def test_a_refused_query_is_told(prometheus: Prometheus) -> None:
    with pytest.raises(LiveError, match="parse error"):
        prometheus.now("sum(")


def test_a_prometheus_that_cannot_start_says_why(programs: Programs, tmp_path: Path) -> None:
    targets = [live.Target("same", 1, {"a-b": "no label"})]
    with pytest.raises(LiveError, match="did not start"), live.running(programs, tmp_path, live.static(targets)):
        pass
