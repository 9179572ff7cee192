# SPDX-License-Identifier: Apache-2.0
"""Progress, ETA and loss move while training runs; and training needs no server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from kinema_demo.install import NAMESPACE
from kinema_demo.kubectl import Kubectl

from kinema_api.names import Stage
from kinema_api.status import Phase

from tests.cluster.jobs import NO_RESULT, Job, Jobs
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_progress_moves_in_kubectl_get_watch(second: Job) -> None:
    second.running(Stage.TRAIN)
    rows: list[list[str]] = []
    with second.kubectl.popen("get", "vtj", second.name, "--watch") as watch:
        assert watch.stdout is not None
        header = watch.stdout.readline().split()
        assert header == ["NAME", "PHASE", "STAGE", "PROGRESS", "ETA", "LOSS", "RESTARTS", "AGE"]
        for line in watch.stdout:
            rows.append(line.split())
            if len(line.split()) > 1 and line.split()[1] in ("Succeeded", "Failed"):
                break
        watch.terminate()
    # Before the first post the three columns are empty.
    told = [row for row in rows if len(row) == len(header) and row[2] == "train"]
    percents = [int(row[3].removesuffix("%")) for row in told]
    assert percents == sorted(percents)
    assert len(set(percents)) >= 3, rows
    assert len({row[5] for row in told}) >= 3, "the loss moves"
    assert len({row[4] for row in told}) >= 2, "the time left moves"
    assert all(float(row[5]) > 0 for row in told)


def test_the_last_word_is_the_last_step(second: Job) -> None:
    progress = second.succeeded().progress
    assert progress is not None
    assert (progress.stage, progress.percentage, progress.step, progress.total_steps) == (Stage.TRAIN, 100, 300, 300)
    last = second.lines("metrics.jsonl")[-1]
    assert float(progress.loss or "nan") == pytest.approx(last["loss"], rel=1e-3)
    managers = second.kubectl.run("get", "vtj", second.name, "-o", "json", "--show-managed-fields")
    owned = {field["manager"]: field["fieldsV1"] for field in json.loads(managers)["metadata"]["managedFields"]}
    assert list(owned["kinema-server"]) == ["f:status"]
    assert set(owned["kinema-server"]["f:status"]) - {"."} == {"f:progress"}
    # The operator says which stage begins; all that is told of it is the server's.
    assert set(owned["kinema-operator"]["f:status"].get("f:progress", {})) <= {".", "f:stage", "f:attempt"}


@pytest.fixture
def no_server(kubectl: Kubectl) -> Iterator[None]:
    """No server for the length of a test."""
    system = kubectl.within(NAMESPACE)
    system.run("scale", "deployment/kinema-server", "--replicas=0")
    until(
        "the server is gone",
        lambda: not system.list("pods", labels={"app.kubernetes.io/component": "server"}),
        seconds=90,
    )
    yield
    system.run("scale", "deployment/kinema-server", "--replicas=1")
    system.run("rollout", "status", "deployment/kinema-server", "--timeout=120s", timeout=150)


def test_a_job_succeeds_without_the_server(no_server: None, jobs: Jobs, wan: Job, shared: str) -> None:
    wan.succeeded()
    job = jobs.start("no-server", root=shared, stages={**NO_RESULT, "train": {"steps": 20}})
    status = job.succeeded()
    assert status.phase is Phase.SUCCEEDED
    assert status.progress is None
    assert status.restarts == 0
    assert job.stage(Stage.TRAIN).counts["steps"] == 20
