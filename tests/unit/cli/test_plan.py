# SPDX-License-Identifier: Apache-2.0
"""`kinema plan`, `models` and `pools`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_api import geometry
from kinema_api.buckets import Geometry
from kinema_api.catalogue import entry
from kinema_api.job import JobSpec
from kinema_api.lora import Lora
from kinema_api.pool import PoolSpec
from kinema_api.recompute import Recompute, RecomputeMode
from kinema_api.settings import TrainSettings
from kinema_cli.forecast import Pace, forecast, operations, peak_of
from kinema_kube.resources import TRAINING_POOLS

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
JOB, POOL = EXAMPLES / "wan-1.3b-nvidia.yaml", EXAMPLES / "pools" / "nvidia-8gpu.yaml"


def tflop(model: str, *, height: int, width: int, **settings: Any) -> float:
    found = entry(model)
    tokens = geometry.tokens(Geometry(81, height, width), found)
    return operations(found, TrainSettings(**settings), tokens=tokens) / 1e12


@pytest.mark.parametrize(
    ("model", "height", "width", "settings", "wanted"),
    [
        # What torch's FlopCounterMode counts over the diffusers classes.
        ("wan2.1-t2v-1.3b", 480, 832, {}, 849.0),
        ("wan2.1-t2v-14b", 720, 1280, {}, 19570),
        ("wan2.1-t2v-1.3b", 480, 832, {"lora": Lora(enabled=True)}, 767),
    ],
)
def test_operations_are_those_that_the_trainer_counts(
    model: str, height: int, width: int, settings: dict[str, Any], wanted: float
) -> None:
    found = tflop(model, height=height, width=width, **settings)
    assert found == pytest.approx(wanted, rel=1e-3)


def test_what_is_computed_again_counts() -> None:
    once = tflop("wan2.1-t2v-14b", height=720, width=1280)
    full = tflop("wan2.1-t2v-14b", height=720, width=1280, recompute=Recompute(mode=RecomputeMode.FULL))
    half = tflop("wan2.1-t2v-14b", height=720, width=1280, recompute=Recompute(mode=RecomputeMode.INTERVAL, every=2))
    assert full == pytest.approx(once * 4 / 3, rel=0.01)
    assert once < half < full


def spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate({**jobs.SPEC, **changes})


def pool(**changes: Any) -> dict[str, PoolSpec]:
    return {"h100": PoolSpec.model_validate({**jobs.POOL, **changes})}


def test_cost_is_time_times_devices_times_price() -> None:
    found = forecast(spec(), pool(), Pace(step_seconds=1.8))
    assert found.seconds == pytest.approx(36_000)
    assert found.accelerator_hours == pytest.approx(320)
    assert found.cost == pytest.approx(800)
    assert (found.devices, found.samples_per_step, found.price_per_hour) == (32, 32, 80.0)


def test_time_without_a_measured_step_is_an_assumption_that_is_told() -> None:
    found = forecast(spec(), pool(), Pace(mfu=0.5))
    assert found.step_seconds == pytest.approx(found.tflop_per_step * 1e12 / (32 * 989.4e12 * 0.5))
    assert found.pace == "assumed: 50 % of 989.4 TFLOP/s a device (H100)"


def test_a_device_that_nobody_names_has_no_time_and_no_cost() -> None:
    found = forecast(spec(), pool(nodeSelector={}, description=""), Pace())
    assert (found.seconds, found.accelerator_hours, found.cost) == (None, None, None)
    assert "--step-seconds" in found.pace


@pytest.mark.parametrize(
    ("text", "peak"),
    [("NVIDIA-H100-80GB-HBM3", 989.4e12), ("NVIDIA-H100-PCIe", 756e12), ("A100-SXM4-MIG-1g.5gb", None), ("L40S", None)],
)
def test_peaks_are_found_by_the_devices_name(text: str, peak: float | None) -> None:
    assert peak_of(pool(nodeSelector={"nvidia.com/gpu.product": text}, description="")["h100"])[0] == peak


def test_the_plan_of_a_good_job(kinema: Kinema) -> None:
    done = kinema("plan", JOB, "--pool-file", POOL)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "wan-1-3b: wan2.1-t2v-1.3b on pool h100"
    assert "train     h100         2              8" in lines
    assert any(line.startswith("books    1,017 accelerator-hours") for line in lines)


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
