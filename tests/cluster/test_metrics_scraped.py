# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus has scraped operator, server and training pods: every query of ours has had data.

UPDATE_DOCS=1 draws the dashboards of this run into docs/dashboards.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from kinema_dashboards import live, sheet
from kinema_dashboards.__main__ import PICTURES
from kinema_dashboards.build import BOARDS
from kinema_dashboards.live import Prometheus, Silent, Span
from kinema_demo.install import NAMESPACE
from kinema_demo.kubectl import Kubectl
from typer.testing import CliRunner

from kinema_api.status import Phase
from kinema_cli.__main__ import app
from kinema_cluster.full import WORKSPACE

from tests.cluster.jobs import NO_RESULT, Job, Jobs
from tests.cluster.scraping import PRICE, Scraping
from tests.prometheus.cases import UNKNOWN_ON_A_CPU
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

EXCUSES = MappingProxyType({**live.EXCUSES, **UNKNOWN_ON_A_CPU})
"""What no job on ordinary nodes can show; tests/prometheus feeds each to the queries that ask for it."""
COMPONENTS = tuple(f"{NAMESPACE}/kinema-{name}" for name in ("operator", "server"))
STAGES = f"{NAMESPACE}/kinema-stages"
PATIENCE = 45.0
TAIL = 5.0
"""Seconds that a picture goes on after the last sample of what it shows."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What Prometheus has seen of the session so far."""

    prometheus: Prometheus
    span: Span
    values: dict[str, str]
    silent: list[Silent]


@contextlib.contextmanager
def taken(kubectl: Kubectl, name: str) -> Iterator[None]:
    """Somebody else's Job that has the name the operator wants; nothing of it ever runs."""
    container = {"name": "none", "image": "none"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    kubectl.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
                   "spec": {"suspend": True, "template": template}})  # fmt: skip
    try:
        yield
    finally:
        kubectl.run("delete", "job", name, "--wait=false")


@contextlib.contextmanager
def reader(kubectl: Kubectl) -> Iterator[str]:
    """A token that may look at jobs."""
    name = "scraped-reader"
    kubectl.run("create", "rolebinding", name, "--clusterrole=view", f"--serviceaccount={kubectl.namespace}:default")
    try:
        yield kubectl.run("create", "token", "default").strip()
    finally:
        kubectl.run("delete", "rolebinding", name)


def ask_for_samples(job: Job) -> None:
    """The server starts a pod that reads the workspace."""
    with reader(job.kubectl) as token:
        where = ("-n", job.kubectl.namespace, "--kubeconfig", str(job.kubectl.kubeconfig), "--token", token)

        def listed() -> bool:
            # The right takes a moment to come through.
            return CliRunner().invoke(app, ["samples", job.name, "-o", "name", *where]).exit_code == 0

        until(f"the server lists the samples of {job.name}", listed, seconds=60, poll=1.0)


@pytest.fixture(scope="module")
def seen(scraping: Scraping | None, jobs: Jobs, wan: Job, second: Job) -> Iterator[Seen]:
    """Everything that Prometheus knows once a job has failed, a name was taken and samples were asked for."""
    if scraping is None:
        pytest.skip("pods of another machine's cluster cannot be reached from here")
    wan.succeeded()
    second.succeeded()
    nothing = {"uri": f"pvc://{WORKSPACE}/nowhere"}
    wrong: dict[str, Any] = {"root": jobs.root("scraped"), "stages": NO_RESULT, "dataset": nothing}
    failing = jobs.start("no-dataset", **wrong)
    with taken(second.kubectl, "name-taken-check-1"):
        blocked = jobs.start("name-taken", **wrong)
        ask_for_samples(second)
        failing.ended(Phase.FAILED)
        found = _collected(scraping)
    yield found
    for job in (failing, blocked):
        job.delete(wait=False)
    scraping.close()


def _collected(scraping: Scraping) -> Seen:
    """Ask until nothing is silent that may not be; what is silent at the end, a test says."""
    values = {"namespace": scraping.kubectl.namespace, "vtj": "second", "job": "|".join(COMPONENTS), "instance": ".+",
              "__rate_interval": "30s"}  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while True:
        span = Span(scraping.began, time.time())
        chosen = {**values, "__range": f"{span.end - span.start:.0f}s"}
        silent = live.silent(scraping.prometheus, chosen, span=span, excuses=EXCUSES)
        if time.monotonic() > deadline or not [item for item in silent if not item.excused]:
            return Seen(prometheus=scraping.prometheus, span=span, values=chosen, silent=silent)
        time.sleep(1.0)


def test_operator_server_and_training_pods_are_scraped(seen: Seen) -> None:
    scraped = {found.labels["job"] for found in seen.prometheus.over("up == 1", seen.span)}
    assert scraped == {*COMPONENTS, STAGES}
    (loss,) = seen.prometheus.over('kinema_train_loss{vtj="second"}', seen.span)
    wanted = {"namespace": seen.values["namespace"], "stage": "train", "attempt": "1", "endpoint": "metrics",
              "pod": "second-train-1-master-0", "job": STAGES}  # fmt: skip
    assert wanted.items() <= loss.labels.items()
    assert len({value for _, value in loss.points}) > 5, "the loss moves"
    pods = {found.labels["pod"] for found in seen.prometheus.over(f'up{{job="{STAGES}"}}', seen.span)}
    assert not [pod for pod in pods if "-worker-" in pod], "only the first pod of an attempt serves metrics"


def test_every_panel_every_rule_and_every_series_of_an_alert_has_had_data(seen: Seen) -> None:
    missing = [item for item in seen.silent if not item.excused]
    assert not missing, "\n".join(f"{item.where}: {item.expr}" for item in missing)


def test_only_what_no_cpu_can_tell_is_excused(seen: Seen) -> None:
    excused = {item.expr: item.excused for item in seen.silent if item.excused}
    assert {reason for reason in excused.values()} <= set(EXCUSES.values())
    # An excuse that nobody needs any more would hide the next gap.
    speaking = [name for name in EXCUSES if seen.prometheus.over(name, seen.span)]
    assert not speaking, speaking


def test_numbers_are_those_of_the_status(seen: Seen, second: Job) -> None:
    status = second.status
    (ratio,) = seen.prometheus.now('max(kinema_job_progress_ratio{vtj="second", stage="train"})', at=seen.span.end)
    assert ratio.points[0][1] == 1.0
    told = seen.prometheus.now('kinema_job_seconds_total{vtj="second"}', at=seen.span.end)
    spent = {found.labels["activity"]: found.points[0][1] for found in told if found.points[0][1]}
    assert spent == {name: value for name, value in status.usage.seconds.model_dump().items() if value}
    (price,) = seen.prometheus.now("max by (currency) (kinema_pool_price)", at=seen.span.end)
    assert (price.labels["currency"], price.points[0][1]) == (PRICE["currency"], PRICE["deviceHour"])


def test_the_run_can_be_drawn(seen: Seen, second: Job) -> None:
    losses = seen.prometheus.over('kinema_train_loss{vtj="second"}', seen.span)
    last = max(found.points[-1][0] for found in losses)
    began = min(found.points[0][0] for found in seen.prometheus.over('kinema_job_info{vtj="second"}', seen.span))
    day = time.strftime("%Y-%m-%d", time.gmtime(last))
    of_job = Span(began, last + TAIL)
    boards = [(board, of_job if board.uid == "kinema-job" else seen.span) for board in BOARDS]
    caption = f"{day}, of jobs of the toy model on two nodes of a local cluster, scraped by Prometheus"
    if os.environ.get("UPDATE_DOCS"):
        sheet.write(boards, seen.prometheus, seen.values, PICTURES, caption=caption)
        return
    board, span = boards[1]
    assert sheet.draw(board, seen.prometheus, span, seen.values, caption=caption).startswith(b"\x89PNG")
