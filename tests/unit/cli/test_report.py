# SPDX-License-Identifier: Apache-2.0
"""`kinema report`: all that helps, and no secret."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
import yaml

from kinema_cli import redact
from kinema_kube.resources import PODS, VIDEO_TRAINING_JOBS

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi, status

pytestmark = pytest.mark.unit

JWT = "eyJhbGciOiJSUzI1NiIs.eyJpc3MiOiJrdWJlcm5l.c2lnbmF0dXJl"


@pytest.fixture
def files(api: FakeApi, kinema: Kinema, tmp_path: Path) -> dict[str, str]:
    """The files of a report about a failed job, some of whose pods say what they should not."""
    job = jobs.failed()
    job["spec"]["defaults"]["podTemplate"] = {"env": [{"name": "WANDB_API_KEY", "value": "0123456789abcdef"}]}
    job["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    stored = api.put(VIDEO_TRAINING_JOBS, job)
    labels = {"kinema.dev/job-uid": stored["metadata"]["uid"]}
    container = {"name": "pytorch", "env": [{"name": "HF_TOKEN", "value": "plain"}, {"name": "RANK", "value": "0"}]}
    api.put(
        PODS,
        {
            "metadata": {"name": "wan-train-2", "namespace": "team", "labels": labels},
            "spec": {"containers": [container]},
        },
    )
    api.logs["team/wan-train-2"] = (
        f"2026-11-22T06:00:00Z loading shard 18\n2026-11-22T06:00:01Z Authorization: Bearer {JWT}\n"
    )
    labels = {"app.kubernetes.io/part-of": "kinema"}
    metadata = {"name": "kinema-operator-1", "namespace": "kinema-system", "labels": labels}
    api.put(PODS, {"metadata": metadata, "spec": {"containers": [{"name": "operator"}]}})
    api.logs["kinema-system/kinema-operator-1"] = "2026-11-22T06:00:00Z leading\n"
    denied = (403, status(403, "Forbidden", "deployments is forbidden"))
    api.hooks.append(lambda request: denied if "/deployments" in request.path else None)
    target = tmp_path / "report.zip"
    done = kinema("report", "wan", "--file", target)
    assert done.code == 0, done.err
    assert done.out == f"{target}\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [request for request in api.requests if "/secrets" in request.path] == []
    with zipfile.ZipFile(target) as archive:
        return {name.removeprefix("report/"): archive.read(name).decode() for name in archive.namelist()}


def test_a_report_holds_what_helps(files: dict[str, str]) -> None:
    assert set(files) >= {
        "job.yaml", "events.yaml", "pods.yaml", "get.txt", "why.txt", "doctor.txt", "pools.yaml", "versions.txt",
        "logs/wan-train-2.log", "installation/logs/kinema-operator-1.log", "left-out.txt",
    }  # fmt: skip
    assert "loading shard 18" in files["logs/wan-train-2.log"]
    assert "HostOutOfMemory" in files["why.txt"]
    assert "deployments is forbidden" in files["left-out.txt"]
    found = yaml.safe_load(files["job.yaml"])
    assert found["spec"]["model"] == jobs.SPEC["model"]
    assert "managedFields" not in found["metadata"]


def test_a_report_holds_no_secret(files: dict[str, str]) -> None:
    everything = "\n".join(files.values())
    assert "0123456789abcdef" not in everything
    assert JWT not in everything
    container = yaml.safe_load(files["pods.yaml"])["spec"]["containers"][0]
    assert container["env"] == [{"name": "HF_TOKEN", "value": redact.GONE}, {"name": "RANK", "value": "0"}]


def test_a_report_is_not_written_over(api: FakeApi, kinema: Kinema, tmp_path: Path) -> None:
    target = tmp_path / "report.zip"
    target.write_text("mine")
    done = kinema("report", "--file", target)
    assert done.code == 64
    assert target.read_text() == "mine"


def test_a_report_of_a_job_that_is_not_there_leaves_nothing(api: FakeApi, kinema: Kinema, tmp_path: Path) -> None:
    assert kinema("report", "none", "--file", tmp_path / "report.zip").code == 1
    assert list(tmp_path.glob("*report*")) == []


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("token=abcdefgh rest", f"token={redact.GONE} rest"),
        ('{"aws_secret_access_key": "wJalrXUtnFEMI"}', f'{{"aws_secret_access_key": "{redact.GONE}"}}'),
        ("Authorization: Bearer abcdefghij", f"Authorization: {redact.GONE}"),
        ("s3 https://me:hunter22@minio:9000/x", f"s3 https://{redact.GONE}@minio:9000/x"),
        ("AKIAIOSFODNN7EXAMPLE", redact.GONE),
        ("hf_abcdefghijklmnopqrst", redact.GONE),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nrest", f"{redact.GONE}\nrest"),
        ("tokens_per_second: 81920 and 512 tokens: fine", "tokens_per_second: 81920 and 512 tokens: fine"),
        ("secretRef: {name: bucket}", "secretRef: {name: bucket}"),
    ],
)
def test_what_looks_like_a_secret_is_left_out(said: str, left: str) -> None:
    assert redact.text(said) == left
    assert redact.data([{"deep": said}]) == [{"deep": left}]


def test_paths_to_secrets_are_no_secrets() -> None:
    variable = {"name": "KUBEFLOW_TRAINER_SERVER_TOKEN_FILE", "value": "/var/run/secrets/kinema/wan"}
    assert redact.data(variable) == variable
