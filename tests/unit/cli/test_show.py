# SPDX-License-Identifier: Apache-2.0
"""`kinema list`, `get` and `submit`, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_cli.ends import CANCELLED, DELETED, DETACHED
from kinema_kube.resources import VIDEO_TRAINING_JOBS

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import TOKEN, FakeApi, Request, kubeconfig, status

pytestmark = pytest.mark.unit

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "wan-1.3b-nvidia.yaml"


def put(api: FakeApi, job: dict[str, Any]) -> dict[str, Any]:
    return api.put(VIDEO_TRAINING_JOBS, job)


def test_list_shows_the_jobs_of_the_contexts_namespace(api: FakeApi, kinema: Kinema) -> None:
    put(api, jobs.running())
    api.job("other", namespace="elsewhere")
    done = kinema("list")
    assert done.code == 0, done.err
    head, row = done.out.splitlines()
    assert head.split() == ["NAME", "PHASE", "STAGE", "PROGRESS", "ETA", "LOSS", "RESTARTS", "AGE"]
    assert row.split()[:7] == ["wan", "Running", "train", "42%", "3h12m", "0.1234", "0"]
    assert api.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"


def test_list_of_all_namespaces_names_them(api: FakeApi, kinema: Kinema) -> None:
    put(api, jobs.running())
    api.job("other", namespace="elsewhere")
    rows = kinema("list", "-A").out.splitlines()
    assert [row.split()[:3] for row in rows[1:]] == [["elsewhere", "other", "Pending"], ["team", "wan", "Running"]]


def test_list_by_phase_and_label_asks_the_api_server(api: FakeApi, kinema: Kinema) -> None:
    assert kinema("list", "--phase", "running", "-l", "a=b").err == "no jobs in namespace team that fit\n"
    query = api.requests[-1].query
    assert (query["fieldSelector"], query["labelSelector"]) == ("status.phase=Running", "a=b")


def test_an_unknown_phase_is_refused_with_those_there_are(api: FakeApi, kinema: Kinema) -> None:
    done = kinema("list", "--phase", "Done")
    assert done.code == 64
    assert "write one of Pending, Running, Suspended, Succeeded, Failed, Cancelled" in done.err


@pytest.mark.parametrize("output", ["json", "yaml", "name"])
def test_list_for_programs(api: FakeApi, kinema: Kinema, output: str) -> None:
    job = jobs.running()
    job["metadata"]["managedFields"] = [{"manager": "x"}]
    put(api, job)
    text = kinema("list", "-o", output).out
    if output == "name":
        assert text == "videotrainingjob.kinema.dev/wan\n"
        return
    found = json.loads(text) if output == "json" else yaml.safe_load(text)
    assert found["kind"] == "List"
    assert found["items"][0]["metadata"]["name"] == "wan"
    assert "managedFields" not in found["items"][0]["metadata"]


def test_get_shows_the_tree_of_stages(api: FakeApi, kinema: Kinema) -> None:
    put(api, jobs.running())
    done = kinema("get", "wan")
    assert done.code == 0, done.err
    assert "team/wan  Running for" in done.out
    assert "[######..........] 42%, 8400/20000, loss 0.1234, 12.8 clips/s, 3h12m left" in done.out
    assert "=" in next(line for line in done.out.splitlines() if "prepare" in line)
    assert "\x1b" not in done.out, "no colour when piped"


def test_get_of_one_job_for_programs(api: FakeApi, kinema: Kinema) -> None:
    put(api, jobs.running())
    assert json.loads(kinema("get", "wan", "-o", "json").out)["spec"] == jobs.SPEC
    assert yaml.safe_load(kinema("get", "wan", "-o", "yaml").out)["spec"] == jobs.SPEC
    assert kinema("get", "wan", "-o", "name").out == "videotrainingjob.kinema.dev/wan\n"


def test_a_job_that_is_not_there_is_said_to_be_missing(api: FakeApi, kinema: Kinema) -> None:
    done = kinema("get", "wann", "-n", "research")
    assert done.code == 1
    assert done.err.startswith("kinema: there is no job wann in namespace research: `kinema list -A` shows all")


def test_what_the_user_may_not_do_is_said_with_who_can_help(api: FakeApi, kinema: Kinema) -> None:
    api.hooks.append(lambda request: (403, status(403, "Forbidden", "jobs is forbidden: User x cannot list")))
    done = kinema("list")
    assert done.code == 1
    assert done.err.startswith("kinema: jobs is forbidden: User x cannot list; ask your administrator")


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, kinema: Kinema) -> None:
    done = kinema("list", "--kubeconfig", kubeconfig(tmp_path, "http://127.0.0.1:9"))
    assert done.code == 1
    assert "the API server does not answer" in done.err
    assert "kinema doctor" in done.err


def test_without_a_kubeconfig_it_says_so(tmp_path: Path, kinema: Kinema) -> None:
    done = kinema("list", "--kubeconfig", tmp_path / "none")
    assert done.code == 1
    assert done.err == f"kinema: no kubeconfig at {tmp_path / 'none'}; name one by --kubeconfig or in KUBECONFIG\n"


def test_an_exec_plugin_gives_the_token(api: FakeApi, tmp_path: Path, kinema: Kinema) -> None:
    plugin = tmp_path / "plugin"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-the-plugin"},
    }
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps(credential)}'\n")
    plugin.chmod(0o755)
    user = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    }
    folder = tmp_path / "exec"
    folder.mkdir()
    done = kinema("list", "--kubeconfig", kubeconfig(folder, api.url, user=user))
    assert done.code == 0, done.err
    assert api.requests[-1].headers["authorization"] == "Bearer from-the-plugin"


def test_submit_creates_the_job_in_the_contexts_namespace(api: FakeApi, kinema: Kinema) -> None:
    done = kinema("submit", EXAMPLE)
    assert done.code == 0, done.err
    assert done.out == "job team/wan-1-3b created\nsee it run: kinema get wan-1-3b --watch\n"
    sent = api.sent("POST")[-1]
    assert sent.query == {"fieldManager": "kinema-cli", "fieldValidation": "Strict"}
    assert sent.body["spec"]["model"]["name"] == "wan2.1-t2v-1.3b"


def test_submit_under_another_name(api: FakeApi, kinema: Kinema) -> None:
    assert kinema("submit", EXAMPLE, "--name", "again", "-n", "lab", "-o", "name").out == (
        "videotrainingjob.kinema.dev/again\n"
    )
    assert "/apis/kinema.dev/v1alpha1/namespaces/lab/videotrainingjobs/again" in api.objects


def test_submit_of_a_name_that_is_taken_says_what_to_do(api: FakeApi, kinema: Kinema) -> None:
    kinema("submit", EXAMPLE)
    done = kinema("submit", EXAMPLE)
    assert done.code == 1
    assert "there is a job wan-1-3b in namespace team already" in done.err
    assert "--name" in done.err


def test_a_dry_run_creates_nothing(api: FakeApi, kinema: Kinema) -> None:
    done = kinema("submit", EXAMPLE, "--dry-run")
    assert done.out == "job team/wan-1-3b would be accepted; nothing was created\n"
    assert api.objects == {}


def test_what_the_api_server_refuses_is_said_in_its_words(api: FakeApi, kinema: Kinema) -> None:
    said = 'VideoTrainingJob "wan" is invalid: spec.storage.uri: write pvc://CLAIM/PATH or s3://BUCKET/PREFIX'

    def refuse(request: Request) -> tuple[int, Any] | None:
        return (422, status(422, "Invalid", said)) if request.method == "POST" else None

    api.hooks.append(refuse)
    done = kinema("submit", EXAMPLE)
    assert done.code == 1
    assert done.err == f"kinema: the API server refuses the job: {said}\n"


def test_submit_follows_to_the_end(api: FakeApi, kinema: Kinema) -> None:
    def live() -> None:
        for state in (jobs.running(), jobs.succeeded()):
            state["metadata"]["name"] = "wan-1-3b"
            put(api, state)

    api.on_watch.append(live)
    done = kinema("submit", EXAMPLE, "--follow")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "job team/wan-1-3b created"
    assert "train: attempt 1 started" in lines
    assert "train: 42%, 8400/20000, loss 0.1234, 12.8 clips/s, 3h12m left" in lines
    assert lines[-1].startswith("succeeded: done; results are in pvc://")


def test_following_a_job_that_fails_ends_with_the_stages_code(api: FakeApi, kinema: Kinema) -> None:
    put(api, jobs.running())
    api.on_watch.append(lambda: put(api, jobs.failed()))
    done = kinema("get", "wan", "--watch")
    assert done.code == 72
    assert "! train: attempt 2 failed (HostOutOfMemory)" in done.out


@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Cancelled", CANCELLED)])
def test_watching_a_job_that_has_ended_ends_at_once(api: FakeApi, kinema: Kinema, phase: str, code: int) -> None:
    job = jobs.succeeded()
    job["status"]["phase"] = phase
    put(api, job)
    assert kinema("get", "wan", "-w").code == code


def test_a_job_that_is_deleted_while_it_is_watched(api: FakeApi, kinema: Kinema) -> None:
    put(api, jobs.running())
    api.on_watch.append(lambda: api.remove(VIDEO_TRAINING_JOBS, "wan", "team"))
    done = kinema("get", "wan", "-w")
    assert (done.code, done.err) == (DELETED, "job wan was deleted\n")


def test_a_watch_that_breaks_goes_on(api: FakeApi, kinema: Kinema) -> None:
    put(api, jobs.running())
    api.on_watch += [api.end_watches, lambda: put(api, jobs.succeeded())]
    assert kinema("get", "wan", "-w").code == 0
    assert len([request for request in api.requests if request.query.get("watch")]) == 2


def test_a_watch_that_is_too_old_lists_again(api: FakeApi, kinema: Kinema) -> None:
    put(api, jobs.running())

    def expire() -> None:
        api.end_watches({"type": "ERROR", "object": status(410, "Expired", "too old resource version")})

    api.on_watch += [expire, lambda: put(api, jobs.succeeded())]
    assert kinema("get", "wan", "-w").code == 0


def test_ctrl_c_detaches_and_says_how_to_come_back(
    api: FakeApi, kinema: Kinema, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(api, jobs.running())

    async def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("kinema_cli.show.follow", interrupted)
    done = kinema("get", "wan", "-w", "-n", "team")
    assert done.code == DETACHED
    assert done.err == "detached; the job goes on. To come back: kinema get wan --watch -n team\n"


def test_list_watches_a_line_for_each_change(api: FakeApi, kinema: Kinema, monkeypatch: pytest.MonkeyPatch) -> None:
    put(api, jobs.running())

    def live() -> None:
        put(api, jobs.succeeded())
        api.hooks.append(lambda request: (403, status(403, "Forbidden", "no more")))
        api.end_watches()

    api.on_watch.append(live)
    done = kinema("list", "--watch")
    assert [line.split()[1] for line in done.out.splitlines()] == ["PHASE", "Running", "Succeeded"]
    assert done.code == 1
