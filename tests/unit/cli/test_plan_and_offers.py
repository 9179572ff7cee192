# SPDX-License-Identifier: Apache-2.0
"""`kinema plan`, `models` and `pools`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kinema_kube.resources import TRAINING_POOLS

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
JOB, POOL = EXAMPLES / "wan-1.3b-nvidia.yaml", EXAMPLES / "pools" / "nvidia-8gpu.yaml"


def test_the_plan_of_a_good_job(kinema: Kinema) -> None:
    done = kinema("plan", JOB, "--pool-file", POOL)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "wan-1-3b: wan2.1-t2v-1.3b on pool h100"
    assert "train     h100         2              8" in lines
    assert any(line.startswith("books    1,017 accelerator-hours") for line in lines)


def test_what_is_missing_for_the_time_is_named_with_its_options(kinema: Kinema, tmp_path: Path) -> None:
    pool = yaml.safe_load(POOL.read_text())
    pool["spec"] |= {"nodeSelector": {}, "description": ""}
    file = tmp_path / "pool.yaml"
    file.write_text(yaml.safe_dump(pool))
    done = kinema("plan", JOB, "--pool-file", file)
    assert done.code == 0, done.err
    assert "nothing names the pool's device" in done.out
    assert "--step-seconds" in done.out


def test_the_plan_over_the_clusters_pools(api: FakeApi, kinema: Kinema, tmp_path: Path) -> None:
    api.put(TRAINING_POOLS, {"metadata": {"name": "h100"}, "spec": jobs.POOL})
    file = tmp_path / "job.yaml"
    job = {
        "apiVersion": "kinema.dev/v1alpha1",
        "kind": "VideoTrainingJob",
        "metadata": {"name": "wan"},
        "spec": jobs.SPEC,
    }
    file.write_text(yaml.safe_dump(job))
    found = json.loads(kinema("plan", file, "-o", "json").out)
    assert (found["pool"], found["devices"], found["deviceMemory"]) == ("h100", 32, 80 << 30)
    assert found["cost"] == pytest.approx(found["acceleratorHours"] * 2.5)
    assert api.sent("POST") == [], "nothing is created"


def test_a_toy_takes_more_than_nothing(kinema: Kinema) -> None:
    said = kinema("plan", EXAMPLES / "wan-job.yaml", "--pool-file", EXAMPLES / "pools" / "cpu.yaml").out
    assert " TFLOP" in said and " 0 TFLOP" not in said


def test_a_job_that_does_not_fit_is_refused_with_what_does(kinema: Kinema, tmp_path: Path) -> None:
    big = yaml.safe_load(JOB.read_text())
    big["spec"]["model"] = {"name": "wan2.1-t2v-14b", "weights": {"uri": "pvc://models/Wan2.1-T2V-14B-Diffusers"}}
    big["spec"]["stages"]["prepare"] = {"video": {"frames": 81, "height": 720, "width": 1280}}
    big["spec"]["stages"]["train"]["recompute"] = {"mode": "none"}
    big["spec"]["defaults"]["nodes"] = 1
    job, pools = tmp_path / "job.yaml", tmp_path / "pool.yaml"
    job.write_text(yaml.safe_dump(big))
    pools.write_text(POOL.read_text().replace("  devicesPerNode: 8\n", "  devicesPerNode: 8\n  deviceMemory: 80Gi\n"))
    done = kinema("plan", job, "--pool-file", pools)
    assert done.code == 64
    assert "needs" in done.err
    assert "with recompute.mode: full" in done.err
    assert done.err.rstrip().endswith("(DoesNotFit)")


def test_a_pool_that_is_not_there_is_named_with_those_that_are(kinema: Kinema) -> None:
    done = kinema("plan", JOB, "--pool-file", EXAMPLES / "pools" / "cpu.yaml")
    assert done.code == 64
    assert "there is no TrainingPool h100; this cluster has cpu" in done.err


def test_models(kinema: Kinema) -> None:
    assert "wan2.1-t2v-1.3b" in kinema("models").out
    assert kinema("models", "-o", "name").out.splitlines()[0] == "wan2.1-t2v-1.3b"
    one = kinema("models", "wan2.1-i2v-14b-720p").out.splitlines()
    assert "parameters  16.4B: 40 blocks of width 5120, 40 heads" in one
    assert json.loads(kinema("models", "wan2.1-tiny", "-o", "json").out)["family"] == "wan2.1"
    done = kinema("models", "wan2.1-t2v-1b")
    assert done.code == 64
    assert "did you mean wan2.1-t2v-14b or wan2.1-t2v-1.3b" in done.err


def test_pools(api: FakeApi, kinema: Kinema, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kinema("pools").err.startswith("this cluster has no pools")
    api.put(TRAINING_POOLS, {"metadata": {"name": "h100"}, "spec": jobs.POOL})
    head, row = kinema("pools").out.splitlines()
    assert head.split()[:6] == ["POOL", "ACCELERATOR", "DEVICES", "NODES", "MEMORY", "DEVICE-HOUR"]
    assert row.split()[:7] == ["h100", "nvidia", "8", "16", "80Gi", "2.50", "USD"]
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, kinema("pools").out.splitlines())) <= 60
