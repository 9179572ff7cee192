# SPDX-License-Identifier: Apache-2.0
"""`kinema why`, on jobs that are well and on jobs that are not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from kinema_cli.view import why
from kinema_cli.view.tree import tree
from kinema_kube.resources import EVENTS, VIDEO_TRAINING_JOBS

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi, status

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)


def event(api: FakeApi, job: dict[str, Any], name: str, message: str, at: str, *, kind: str = "Warning") -> None:
    about = {"uid": job["metadata"]["uid"], "name": job["metadata"]["name"]}
    metadata = {"name": name, "namespace": "team", "creationTimestamp": at}
    api.put(EVENTS, {"metadata": metadata, "involvedObject": about, "type": kind, "reason": name, "message": message})


def test_a_failed_job_says_cause_fix_and_what_to_type(api: FakeApi, kinema: Kinema) -> None:
    job = api.put(VIDEO_TRAINING_JOBS, jobs.failed())
    event(api, job, "AttemptFailed", "train: attempt 2 failed", "2026-11-22T07:30:00Z")
    event(api, job, "StageStarted", "train: attempt 1", "2026-11-22T06:30:00Z", kind="Normal")
    done = kinema("why", "wan")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "job    team/wan: Failed in train"
    assert (
        lines[1] == f"cause  train: attempt 2 failed (HostOutOfMemory): {jobs.MESSAGE}; that was the last of 2 attempts"
    )
    assert lines[2] == "fix    ask for fewer clips a device"
    assert "  loading shard 18" in lines
    told = [line.split()[1] for line in lines if "AttemptFailed" in line or "StageStarted" in line]
    assert told == ["StageStarted", "AttemptFailed"], "the newest comes last"
    assert lines[-3:] == ["  kinema logs wan --stage train --attempt 2", "  kinema retry wan", "  kinema report wan"]


def test_a_job_that_runs_is_well(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.running())
    lines = kinema("why", "wan").out.splitlines()
    assert lines[1].startswith("state  train: attempt 1 of at most 4 runs; 42%, 8400/20000")
    assert not any(line.startswith("cause") for line in lines)


def test_a_job_that_waits_for_a_pool(api: FakeApi, kinema: Kinema) -> None:
    what = "stage features: there is no TrainingPool h200; this cluster has cpu"
    said = f"{what}: name one of them, or let the administrator create it"
    api.job(
        status={
            "phase": "Pending",
            "message": said,
            "conditions": [jobs.condition("Accepted", "False", "UnknownPool", said)],
        }
    )
    lines = kinema("why", "wan", "-n", "team").out.splitlines()
    assert lines[1] == f"cause  {said}"
    assert "  kinema pools -n team" in lines


def test_without_the_right_to_events_the_rest_is_said(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.failed())
    denied = (403, status(403, "Forbidden", "events is forbidden"))
    api.hooks.append(lambda request: denied if request.path.endswith("/events") else None)
    done = kinema("why", "wan")
    assert done.code == 0
    assert done.err == "events are left out: you may not list events in this namespace\n"
    assert "cause  train: attempt 2 failed" in done.out


def test_for_programs(api: FakeApi, kinema: Kinema) -> None:
    job = api.put(VIDEO_TRAINING_JOBS, jobs.failed())
    event(api, job, "AttemptFailed", "train: attempt 2 failed", "2026-11-22T07:30:00Z")
    found = json.loads(kinema("why", "wan", "-o", "json").out)
    assert found["fix"] == "ask for fewer clips a device"
    assert found["events"][0]["reason"] == "AttemptFailed"
    assert found["next"][1] == "kinema retry wan"


@pytest.mark.parametrize(
    ("status", "what", "fix"),
    [
        ({}, "the operator has not looked at the job as it is now", "kinema doctor"),
        (
            {"phase": "Suspended", "observedGeneration": 1},
            "it is suspended by spec.policy.suspend",
            "kinema resume wan",
        ),
        ({"phase": "Cancelled", "observedGeneration": 1}, "it was cancelled by spec.policy.cancel", "a new job"),
        (
            {
                "phase": "Running",
                "observedGeneration": 1,
                "stage": "train",
                "message": "train: waits: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu",
                "diagnosis": "train waits: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu;"
                " wait; or ask for fewer",
                "stages": [
                    {"name": "train", "message": "waits: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu"}
                ],
            },
            "train waits: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu",
            "wait; or ask for fewer",
        ),
    ],
)
def test_causes(status: dict[str, Any], what: str, fix: str) -> None:
    job = {"metadata": {"name": "wan", "generation": 1}, "status": status}
    found = why.cause(job)
    assert found is not None
    assert found.what == what
    assert fix in found.fix


@pytest.mark.parametrize("make", [jobs.running, jobs.failed, jobs.succeeded])
def test_it_fits_eighty_columns(make: Any) -> None:
    for lines in (why.why(make(), [], now=NOW, width=80), tree(make(), now=NOW, width=80)):
        assert max(len(str(line)) for line in lines) <= 80


def test_without_a_width_nothing_is_cut() -> None:
    assert f"cause  train: attempt 2 failed (HostOutOfMemory): {jobs.MESSAGE}" in "\n".join(
        map(str, why.why(jobs.failed(), [], now=NOW))
    )
