# SPDX-License-Identifier: Apache-2.0
"""`kinema suspend`, `resume`, `cancel` and `retry`."""

from __future__ import annotations

from typing import Any

import pytest

from kinema_kube.resources import VIDEO_TRAINING_JOBS

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi, Request, status

pytestmark = pytest.mark.unit


def policy(api: FakeApi, name: str = "wan") -> Any:
    path = VIDEO_TRAINING_JOBS.path(namespace="team", name=name)
    return api.objects[path]["spec"].get("policy")


def test_suspend_and_resume(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.running())
    done = kinema("suspend", "wan")
    assert (done.code, done.out) == (0, "job team/wan suspended\n")
    assert policy(api) == {"suspend": True}
    assert api.sent("PATCH")[0].query["fieldManager"] == "kinema-cli"
    assert kinema("suspend", "wan").out == "job team/wan: nothing to do\n"
    assert kinema("resume", "wan").out == "job team/wan resumed\n"
    assert policy(api) == {"suspend": False}


def test_cancel_of_several_says_which_cannot(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.running())
    other = jobs.succeeded()
    other["metadata"]["name"] = "other"
    api.put(VIDEO_TRAINING_JOBS, other)
    done = kinema("cancel", "other", "none", "wan")
    assert done.code == 1
    assert done.out == "job team/wan cancelled\n"
    assert "job 'other' has ended (Succeeded): there is nothing to cancel" in done.err
    assert "there is no job none in namespace team" in done.err
    assert policy(api) == {"cancel": True}


def test_retry_from_a_stage(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.failed())
    assert kinema("retry", "wan", "--stage", "train", "-o", "name").out == "videotrainingjob.kinema.dev/wan\n"
    assert policy(api) == {"retry": {"number": 1, "stage": "train"}}


def test_retry_of_what_runs_is_refused(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.running())
    done = kinema("retry", "wan")
    assert done.code == 1
    assert "job 'wan' has not ended (Running)" in done.err
    assert policy(api) is None


def test_an_unknown_stage_is_refused_with_those_there_are(api: FakeApi, kinema: Kinema) -> None:
    done = kinema("retry", "wan", "--stage", "trian")
    assert done.code == 64
    assert "--stage trian: there is no such stage; write one of check, prepare" in done.err
    assert api.requests == []


def test_a_job_that_changes_meanwhile_is_asked_again(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.running())
    refused: list[Request] = []

    def conflict(request: Request) -> Any:
        if request.method != "PATCH" or refused:
            return None
        refused.append(request)
        return 409, status(409, "Conflict", "the object has been modified")

    api.hooks.append(conflict)
    assert kinema("suspend", "wan").code == 0
    assert len(api.sent("PATCH")) == 2
    assert policy(api) == {"suspend": True}


def test_retry_and_follow(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.failed())

    def again() -> None:
        done = jobs.succeeded()
        done["metadata"]["generation"] = done["status"]["observedGeneration"] = 2
        api.put(VIDEO_TRAINING_JOBS, done)

    # Until the operator has looked at it again the job still says Failed.
    api.on_watch.append(again)
    done = kinema("retry", "wan", "--follow")
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("succeeded:")
