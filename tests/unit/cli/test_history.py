# SPDX-License-Identifier: Apache-2.0
"""`kinema loss` and `kinema samples`: through the API server to Kinema's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fastapi.datastructures import Headers

from kinema_cli.view.chart import Series, chart
from kinema_kube.resources import PODS, VIDEO_TRAINING_JOBS
from kinema_server.refusal import Refusal
from kinema_server.reviews import bearer_token

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import TOKEN, FakeApi, Request, kubeconfig, status

pytestmark = pytest.mark.unit

PROXY = "/api/v1/namespaces/kinema-system/services/https:kinema-server:https/proxy"
JOB = "/v1alpha1/namespaces/team/videotrainingjobs/wan"
STEPS = list(range(0, 2000, 20))
LOSS: list[float | None] = [2.3 * math.exp(-step / 600) + 0.1 for step in STEPS]
HISTORY = {
    "step": 1980,
    "series": [
        {"name": "loss", "steps": STEPS, "values": [*LOSS[:-1], None]},
        {"name": "grad_norm", "steps": STEPS[:2], "values": [1.0, 0.5]},
    ],
}
SAMPLES = {
    "items": [
        {"round": "final", "file": "000-0.mp4", "prompt": "A red fox walks through fresh snow", "seed": 0, "size": 6},
        {"round": "500", "file": "000-0.mp4", "prompt": "A red fox walks through fresh snow", "seed": 0, "size": 5},
    ]
}


def serve(api: FakeApi, *, prefix: str = PROXY) -> None:
    """Put the server behind the API server."""
    answers: dict[str, Any] = {
        f"{prefix}{JOB}/history": HISTORY,
        f"{prefix}{JOB}/samples": SAMPLES,
        f"{prefix}{JOB}/samples/final/000-0.mp4": b"final!",
        f"{prefix}{JOB}/samples/500/000-0.mp4": b"step5",
    }

    def answer(request: Request) -> Any:
        if request.path not in answers:
            return None
        own = request.headers.get("kinema-token") or request.headers["authorization"].removeprefix("Bearer ")
        if own not in (TOKEN, "another"):
            return 401, {"title": "Unauthorized", "detail": "no token", "status": 401}
        return 200, answers[request.path]

    api.hooks.append(answer)
    api.put(VIDEO_TRAINING_JOBS, jobs.running())


def test_the_loss_as_a_chart(api: FakeApi, kinema: Kinema) -> None:
    serve(api)
    done = kinema("loss", "wan")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "loss of team/wan" in lines[0]
    assert lines[-1].startswith("loss 2.4 at step 0, least 0.18")
    assert lines[-1].endswith("at step 1960")
    assert max(map(len, lines)) <= 80
    sent = api.sent("GET", "/history")[0]
    assert sent.headers["kinema-token"] == TOKEN, "the API server keeps Authorization for itself"
    assert sent.query == {"points": "500"}


def test_another_number_and_one_that_is_not_there(api: FakeApi, kinema: Kinema) -> None:
    serve(api)
    assert json.loads(kinema("loss", "wan", "--metric", "grad_norm", "-o", "json").out) == [
        {"step": 0, "grad_norm": 1.0},
        {"step": 20, "grad_norm": 0.5},
    ]
    done = kinema("loss", "wan", "--metric", "mfu")
    assert done.code == 64
    assert "the history has loss, grad_norm" in done.err


def test_without_the_server_the_log_of_the_training_is_drawn(api: FakeApi, kinema: Kinema) -> None:
    job = api.put(VIDEO_TRAINING_JOBS, jobs.running())
    labels = {"kinema.dev/job-uid": job["metadata"]["uid"], "kinema.dev/stage": "train", "kinema.dev/attempt": "1"}
    api.put(PODS, {"metadata": {"name": "wan-train-1-master-0", "namespace": "team", "labels": labels}})
    points = [{"level": "info", "step": step, "loss": 1 / (step + 1)} for step in range(10)]
    text = [f"2026-11-22T06:04:55Z {json.dumps(point)}\n" for point in points]
    api.logs["team/wan-train-1-master-0"] = "".join(["2026-11-22T06:04:55Z NCCL is up\n", *text])
    broken = (503, status(503, "ServiceUnavailable", "no endpoints available"))
    api.hooks.append(lambda request: broken if "/proxy/" in request.path else None)
    done = kinema("loss", "wan")
    assert done.code == 0, done.err
    assert "no endpoints available" in done.err and "drawn from the log" in done.err
    assert done.out.splitlines()[-1].endswith("last 0.1 at step 9")


def test_the_pod_that_reads_the_workspace_is_waited_for(
    api: FakeApi, kinema: Kinema, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(api)
    starts = [(503, {"detail": "the pod that reads the workspace starts", "status": 503}, {"Retry-After": "0"})] * 2
    api.hooks.insert(0, lambda request: starts.pop() if request.path.endswith("/samples") and starts else None)
    done = kinema("samples", "wan", "-o", "name")
    assert (done.code, len(done.out.splitlines())) == (0, 2)
    assert done.err == "the pod that reads the workspace starts; waiting for it\n"
    monkeypatch.setattr("kinema_cli.server.PATIENCE", 0.0)
    starts.append((503, {"detail": "the pod that reads the workspace starts", "status": 503}, {"Retry-After": "5"}))
    done = kinema("samples", "wan")
    assert (done.code, done.err) == (1, "kinema: the server says: the pod that reads the workspace starts (503)\n")


def test_without_server_and_log_it_says_why(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.failed())
    denied = (403, status(403, "Forbidden", 'services "https:kinema-server:https" is forbidden'))
    api.hooks.append(lambda request: denied if "/proxy/" in request.path else None)
    done = kinema("loss", "wan")
    assert done.code == 1
    assert "ask for the right to reach Kinema's server, or name its address by --server" in done.err


def test_a_server_that_is_named_gets_the_token_itself(api: FakeApi, kinema: Kinema) -> None:
    serve(api, prefix="")
    done = kinema("samples", "wan", "--server", api.url, "--token", "another", "-o", "name")
    assert (done.code, done.out) == (0, "final/000-0.mp4\n500/000-0.mp4\n")
    assert api.sent("GET", "/samples")[0].headers["authorization"] == "Bearer another"


def test_samples_as_a_table(api: FakeApi, kinema: Kinema) -> None:
    serve(api)
    lines = kinema("samples", "wan").out.splitlines()
    assert lines[0].split() == ["STEP", "SEED", "SIZE", "FILE", "PROMPT"]
    assert lines[1].split()[:5] == ["final", "0", "6", "B", "000-0.mp4"]


def test_samples_are_downloaded(api: FakeApi, kinema: Kinema, tmp_path: Path) -> None:
    serve(api)
    done = kinema("samples", "wan", "-d", tmp_path / "out", "--step", "final")
    assert (done.code, done.out) == (0, f"{tmp_path}/out/final/000-0.mp4\n")
    assert (tmp_path / "out/final/000-0.mp4").read_bytes() == b"final!"
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["000-0.mp4"]
    done = kinema("samples", "wan", "--step", "7")
    assert "--step 7: there are samples of final, 500" in done.err


def test_programs_get_nothing_but_json(api: FakeApi, kinema: Kinema, tmp_path: Path) -> None:
    serve(api)
    done = kinema("samples", "wan", "-d", tmp_path / "out", "-o", "json")
    assert [item["file"] for item in json.loads(done.out)] == ["000-0.mp4", "000-0.mp4"]
    assert (tmp_path / "out/500/000-0.mp4").read_bytes() == b"step5"


def test_a_full_disk_is_not_blamed_on_the_server(api: FakeApi, kinema: Kinema, tmp_path: Path) -> None:
    serve(api)
    (tmp_path / "out/final").mkdir(parents=True)
    (tmp_path / "out/final/.000-0.mp4.part").symlink_to("/dev/full")
    done = kinema("samples", "wan", "-d", tmp_path / "out")
    assert done.code != 0
    assert "out/final/000-0.mp4 cannot be written: No space left on device" in done.err
    assert list((tmp_path / "out/final").iterdir()) == []


def test_a_token_is_not_carried_elsewhere(api: FakeApi, kinema: Kinema) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.running())
    away = (302, {"title": "Found"}, {"Location": f"{api.url}/elsewhere"})
    api.hooks.append(lambda request: away if "/proxy/" in request.path else None)
    assert "(302)" in kinema("samples", "wan").err
    assert not api.sent("GET", "/elsewhere")


def test_certificates_that_are_not_there_are_named(api: FakeApi, kinema: Kinema, tmp_path: Path) -> None:
    serve(api, prefix="")
    done = kinema("samples", "wan", "--server", api.url, "--server-ca", tmp_path / "none.crt")
    assert done.code == 64
    assert f"--server-ca {tmp_path}/none.crt holds no certificates: No such file or directory" in done.err


def test_a_name_that_leaves_the_folder_is_not_written(
    api: FakeApi, kinema: Kinema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(api)
    monkeypatch.setitem(SAMPLES["items"][0], "file", "../../evil")
    done = kinema("samples", "wan", "-d", tmp_path / "out")
    assert done.code == 1
    assert "is no place for a file" in done.err
    assert list(tmp_path.rglob("evil")) == []


def test_a_client_certificate_alone_is_no_token(api: FakeApi, kinema: Kinema, tmp_path: Path) -> None:
    serve(api)
    folder = tmp_path / "certificate"
    folder.mkdir()
    config = kubeconfig(folder, api.url, user={"username": "me", "password": "x"})
    done = kinema("samples", "wan", "--kubeconfig", config)
    assert done.code == 1
    assert "kubectl create token" in done.err


def test_the_server_takes_the_token_that_the_proxy_lets_through() -> None:
    def sent(*headers: tuple[bytes, bytes]) -> str:
        return bearer_token(Headers(raw=list(headers)))

    assert sent((b"kinema-token", b"mine")) == "mine"
    assert sent((b"authorization", b"Bearer first"), (b"kinema-token", b"second")) == "first"
    with pytest.raises(Refusal, match="no token"):
        sent((b"authorization", b"Basic x"))


def test_two_points_make_a_chart_and_one_does_not() -> None:
    assert chart(Series("loss", [1], [2.0]), title="loss") == ["loss: too few steps for a chart", "1: 2"]
    assert len(chart(Series("loss", [1, 2], [2.0, 1.0]), title="loss")) > 10
