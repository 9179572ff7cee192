# SPDX-License-Identifier: Apache-2.0
"""`kinema logs`: which pod, which lines, and how they read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kinema_cli.view.logs import readable
from kinema_kube.resources import PODS, VIDEO_TRAINING_JOBS

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi, Request, status

pytestmark = pytest.mark.unit

STEP = {
    "time": "2026-11-22T06:04:55.123Z",
    "level": "info",
    "stage": "train",
    "step": 8400,
    "loss": 0.12340001,
    "message": "step",
}
SLOW = {"time": "2026-11-22T06:04:56.000Z", "level": "warning", "stage": "train", "message": "rank 3 is behind"}


def pod(api: FakeApi, job: dict[str, Any], name: str, place: dict[str, str], lines: list[Any]) -> None:
    labels = {
        "kinema.dev/job-uid": job["metadata"]["uid"],
        "kinema.dev/stage": "train",
        "kinema.dev/attempt": "1",
        **place,
    }
    api.put(PODS, {"metadata": {"name": name, "namespace": "team", "labels": labels}})
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    api.logs[f"team/{name}"] = "".join(f"2026-11-22T06:04:55.123456789Z {line}\n" for line in text)


@pytest.fixture
def gang(api: FakeApi) -> FakeApi:
    """A job whose training runs on two pods."""
    job = api.put(VIDEO_TRAINING_JOBS, jobs.running())
    kind, index = "training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index"
    pod(api, job, "wan-train-1-worker-0", {kind: "worker", index: "0"}, ["hello from the worker"])
    pod(api, job, "wan-train-1-master-0", {kind: "master", index: "0"}, ["NCCL is up", STEP, SLOW])
    return api


def test_the_first_pod_of_what_runs_in_words(gang: FakeApi, kinema: Kinema) -> None:
    done = kinema("logs", "wan")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "NCCL is up",
        "06:04:55 step step=8400 loss=0.1234",
        "06:04:56 warning: rank 3 is behind",
    ]
    query = gang.sent("GET", "/log")[0].query
    assert query == {"container": "pytorch", "timestamps": "true"}


def test_another_rank(gang: FakeApi, kinema: Kinema) -> None:
    assert kinema("logs", "wan", "--rank", "1").out == "hello from the worker\n"
    done = kinema("logs", "wan", "--rank", "2")
    assert (done.code, done.err) == (1, "kinema: --rank 2: stage train has the pods 0, 1\n")


def test_all_of_them_say_whose_line_it_is(gang: FakeApi, kinema: Kinema) -> None:
    lines = sorted(kinema("logs", "wan", "--all").out.splitlines())
    assert lines[0] == "wan-train-1-master-0: 06:04:55 step step=8400 loss=0.1234"
    assert lines[-1] == "wan-train-1-worker-0: hello from the worker"


def test_lines_as_they_are_and_only_some_of_them(gang: FakeApi, kinema: Kinema) -> None:
    assert json.loads(kinema("logs", "wan", "--raw", "--grep", "8[0-9]+").out) == STEP
    kinema("logs", "wan", "--tail", "5", "--since", "10m", "--follow")
    query = gang.sent("GET", "/log")[-1].query
    assert (query["tailLines"], query["sinceSeconds"], query["follow"]) == ("5", "600", "true")
    kinema("logs", "wan", "--since", "2026-11-22T08:00:00Z")
    assert gang.sent("GET", "/log")[-1].query["sinceTime"] == "2026-11-22T08:00:00Z"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--since", "yesterday"], "write for instance 10m"),
        (["--grep", "("], "no regular expression"),
        (["--attempt", "7"], "stage train of job wan has no attempt 7; it has 1"),
        (
            ["--stage", "export"],
            "stage export of job wan has not run; those that have: check, features, convert, train",
        ),
    ],
)
def test_what_cannot_be_is_refused(gang: FakeApi, kinema: Kinema, options: list[str], said: str) -> None:
    done = kinema("logs", "wan", *options)
    assert done.code != 0
    assert said in done.err


def test_without_pods_the_end_that_the_job_keeps_is_shown(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.failed())
    done = kinema("logs", "wan")
    assert (done.code, done.out) == (0, "loading shard 17\nloading shard 18\n")
    assert "are gone; the job keeps the end of the log" in done.err


def test_a_job_of_which_nothing_has_run(api: FakeApi, kinema: Kinema) -> None:
    api.job()
    done = kinema("logs", "wan")
    assert (done.code, done.err.startswith("kinema: nothing of job wan has run yet: `kinema why wan`")) == (1, True)


def test_a_container_that_has_not_started_is_waited_for(
    gang: FakeApi, kinema: Kinema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinema_cli.logs._POLL_SECONDS", 0.01)
    tries: list[Request] = []

    def waiting(request: Request) -> Any:
        if not request.path.endswith("/log") or len(tries) == 2:
            return None
        tries.append(request)
        return 400, status(400, "BadRequest", "container is waiting to start: ContainerCreating")

    gang.hooks.append(waiting)
    done = kinema("logs", "wan", "--follow", "--rank", "1")
    assert (done.code, done.out) == (0, "hello from the worker\n")
    assert done.err == "wan-train-1-worker-0 has not started yet; waiting\n"
    tries.clear()
    done = kinema("logs", "wan", "--rank", "1")
    assert done.code == 1
    assert "--follow waits for it" in done.err


def test_a_traceback_follows_its_line() -> None:
    line = {"level": "error", "message": "it broke", "traceback": "Traceback\n  here"}
    assert readable(json.dumps(line)).plain == "error: it broke\nTraceback\n  here"
