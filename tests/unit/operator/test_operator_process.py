# SPDX-License-Identifier: Apache-2.0
"""Settings, log lines, probes and metrics: what the process shows to the outside."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_operator.metrics import Metrics
from kinema_operator.probe import Health, serve
from kinema_operator.queue import Queue
from kinema_operator.settings import Settings, SettingsError, load
from kinema_operator.store import Store
from kinema_operator.watches import Watches

from tests.unit.operator.clock import Clock
from tests.unit.operator.fakes import job

HOST = "127.0.0.1"


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text("watchNamespaces: [team]\nimages: {stage: s}\nserver: {namespace: here}\n")
    settings = load(path)
    assert settings.watch_namespaces == ["team"]
    platform = settings.platform(server_ca="PEM")
    assert platform.images == {"stage": "s"}
    assert platform.server_ca == "PEM"


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text("")
    assert load(path) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("worker: 3", "worker: Extra inputs are not permitted"),
        ("workers: 0", "workers: Input should be greater than or equal to 1"),
        ("server: {port: 1}", "server.port"),
        ("[", "not YAML"),
        ("- a", "the file"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=says) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name the file by --config"):
        load(tmp_path / "none.yaml")


def test_the_lease_lies_in_the_operators_own_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    assert Settings().lease_namespace == "kinema-system"
    monkeypatch.setenv("POD_NAMESPACE", "home")
    monkeypatch.setenv("POD_NAME", "kinema-operator-abc")
    assert Settings().lease_namespace == "home"
    assert Settings().identity == "kinema-operator-abc"


async def fetch(health: Health, metrics: Metrics, *paths: str) -> list[tuple[int, str]]:
    answers = []
    async with (
        serve(health=health, registry=metrics.registry, probe_port=0, metrics_port=0, host="127.0.0.1") as (
            probe,
            scrape,
        ),
        aiohttp.ClientSession() as session,
    ):
        for path in paths:
            port = scrape if path == "/metrics" else probe
            async with session.get(f"http://{HOST}:{port}{path}") as answer:
                answers.append((answer.status, await answer.text()))
    return answers


def test_probes_say_what_is_wrong() -> None:
    health, metrics, troubles = Health(), Metrics(), [""]
    health.watch(lambda: [trouble for trouble in troubles if trouble])
    assert asyncio.run(fetch(health, metrics, "/healthz", "/readyz")) == [(200, "ok\n"), (503, "starting\n")]
    health.ready = True
    assert asyncio.run(fetch(health, metrics, "/readyz")) == [(200, "ok\n")]
    troubles[0] = "worker 3 is dead"
    healthz, readyz = asyncio.run(fetch(health, metrics, "/healthz", "/readyz"))
    assert healthz == (500, "worker 3 is dead\n")
    assert readyz[0] == 503


def test_metrics_follow_the_store_and_keep_no_stale_series() -> None:
    clock, metrics, store = Clock(), Metrics(), Store()
    queue = Queue(later=clock.later, clock=clock)
    metrics.watch(store=store, queue=queue, watches=Watches(["jobs"]))
    store.put(VIDEO_TRAINING_JOBS, job(status={"phase": "Running"}))
    store.put(VIDEO_TRAINING_JOBS, job("new", uid="u-2"))
    queue.add("u-2")
    ((status, text),) = asyncio.run(fetch(Health(), metrics, "/metrics"))
    assert status == 200
    for line in (
        'kinema_jobs{phase="Running"} 1.0',
        'kinema_jobs{phase="Pending"} 1.0',
        "kinema_queue_depth 1.0",
        "kinema_leader 0.0",
        "kinema_build_info{",
        'kinema_watch_age_seconds{resource="jobs"}',
    ):
        assert line in text
    store.discard(VIDEO_TRAINING_JOBS, "u-1")
    ((_, text),) = asyncio.run(fetch(Health(), metrics, "/metrics"))
    assert 'kinema_jobs{phase="Running"} 0.0' in text


def test_requests_are_counted_by_verb_and_code_and_watches_show_life() -> None:
    clock, metrics, health = Clock(), Metrics(), Health()
    watches = Watches(["healthz"], clock=clock)
    clock.advance(100)

    async def body() -> None:
        async with (
            serve(health=health, registry=metrics.registry, probe_port=0, metrics_port=0, host="127.0.0.1") as (
                port,
                _,
            ),
            aiohttp.ClientSession(trace_configs=[metrics.trace(), watches.trace()]) as session,
        ):
            for path in ("/healthz", "/readyz", "/healthz?watch=true"):
                async with session.get(f"http://{HOST}:{port}{path}"):
                    pass
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://{HOST}:1/")

    asyncio.run(body())
    counts = {
        (sample.labels["verb"], sample.labels["code"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "kinema_api_requests_total"
    }
    assert counts == {("GET", "200"): 1, ("GET", "503"): 1, ("WATCH", "200"): 1, ("GET", "0"): 1}
    assert watches.ages(clock()) == {"healthz": 0.0}
