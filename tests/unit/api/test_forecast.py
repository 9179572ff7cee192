# SPDX-License-Identifier: Apache-2.0
"""Operations, peaks, and what a job will take."""

from __future__ import annotations

from typing import Any

import pytest

from kinema_api import geometry, operations
from kinema_api.buckets import Geometry
from kinema_api.catalogue import entry
from kinema_api.forecast import Forecast, Pace, forecast
from kinema_api.job import JobSpec
from kinema_api.peaks import peak_of
from kinema_api.pool import PoolSpec
from kinema_api.settings import TrainSettings

pytestmark = pytest.mark.unit

SPEC: dict[str, Any] = {
    "model": {"name": "wan2.1-t2v-1.3b", "weights": {"uri": "pvc://models/Wan2.1-T2V-1.3B-Diffusers"}},
    "dataset": {"uri": "pvc://datasets/cats"},
    "storage": {"uri": "pvc://training/kinema"},
    "defaults": {"pool": "h100", "nodes": 4},
    "stages": {"train": {"steps": 20_000}},
}
POOL: dict[str, Any] = {
    "accelerator": "nvidia",
    "devicesPerNode": 8,
    "nodes": 16,
    "deviceMemory": "80Gi",
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "prices": {"deviceHour": 2.5, "currency": "USD"},
}


def counted(model: str, *, height: int, width: int, **train: Any) -> operations.Operations:
    found = entry(model)
    tokens = geometry.tokens(Geometry(81, height, width), found)
    settings = TrainSettings.model_validate(train)
    return operations.training(operations.forward(found, tokens=tokens), settings, layers=found.transformer.layers)


@pytest.mark.parametrize(
    ("model", "height", "width", "train", "tera"),
    [
        # What torch's FlopCounterMode counts over the diffusers classes.
        ("wan2.1-t2v-1.3b", 480, 832, {}, 849.0),
        ("wan2.1-t2v-14b", 720, 1280, {}, 19570),
        ("wan2.1-t2v-1.3b", 480, 832, {"lora": {"enabled": True}}, 767),
    ],
)
def test_operations_are_those_that_torch_counts(
    model: str, height: int, width: int, train: dict[str, Any], tera: float
) -> None:
    assert counted(model, height=height, width=width, **train).model / 1e12 == pytest.approx(tera, rel=1e-3)


def test_what_is_computed_again_is_the_devices_alone() -> None:
    def found(**recompute: Any) -> operations.Operations:
        return counted("wan2.1-t2v-14b", height=720, width=1280, recompute=recompute)

    once, full, half = found(mode="none"), found(mode="full"), found(mode="interval", every=2)
    kept = found(mode="selective", save=["attention", "matmul"])
    assert once.model == once.hardware == full.model == half.model
    assert full.hardware == pytest.approx(once.model * 4 / 3, rel=0.01)
    assert half.hardware - once.model == pytest.approx((full.hardware - once.model) / 2)
    assert kept.hardware == once.hardware


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA-H100-80GB-HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("nvidia_h100_nvl", 835.5),
        ("A100-SXM4-MIG-1g.5gb", None),
        ("L40S", None),
        ("", None),
    ],
)
def test_a_peak_is_found_by_the_words_of_a_name(name: str, tera: float | None) -> None:
    found = peak_of("8 devices a node", name)
    assert (found and found.operations) == (None if tera is None else tera * 1e12)


def told(pace: Pace | None = None, *, spec: dict[str, Any] | None = None, **pool: Any) -> Forecast:
    pools = {"h100": PoolSpec.model_validate({**POOL, **pool})}
    return forecast(JobSpec.model_validate(spec or SPEC), pools, pace or Pace())


def test_cost_is_time_times_devices_times_price() -> None:
    found = told(Pace(step_seconds=1.8))
    assert found.seconds == pytest.approx(36_000)
    assert found.accelerator_hours == pytest.approx(320)
    assert found.cost == pytest.approx(800)
    assert (found.devices, found.samples_per_step, found.price_per_hour) == (32, 32, 80.0)
    assert found.wire()["acceleratorHours"] == found.accelerator_hours


def test_time_without_a_measured_step_is_an_assumption_that_is_told() -> None:
    found = told(Pace(mfu=0.5))
    assert found.step_seconds == pytest.approx(found.tflop_per_step * 1e12 / (32 * 989.4e12 * 0.5))
    assert found.pace == "assumed: 50 % of 989.4 TFLOP/s a device (H100)"
    given = told(Pace(peak=100e12, mfu=0.5), nodeSelector={})
    assert given.step_seconds == pytest.approx(given.tflop_per_step / (32 * 100 * 0.5))
    assert given.pace.endswith("(given)")


@pytest.mark.parametrize(
    ("train", "pool", "why"),
    [
        ({}, {"nodeSelector": {}}, "nothing names the pool's device"),
        ({"precision": "fp32"}, {}, "in fp32"),
        ({}, {"accelerator": "cpu"}, "on a cpu pool"),
    ],
)
def test_where_nobody_knows_the_pace_nothing_is_made_up(train: dict[str, Any], pool: dict[str, Any], why: str) -> None:
    found = told(spec={**SPEC, "stages": {"train": {"steps": 20_000, **train}}}, **pool)
    assert (found.seconds, found.accelerator_hours, found.cost) == (None, None, None)
    assert why in found.pace


def test_a_pool_without_prices_costs_nobody_knows_what() -> None:
    found = told(Pace(step_seconds=1.8), prices=None)
    assert found.accelerator_hours == pytest.approx(320)
    assert (found.cost, found.price_per_hour) == (None, None)
    assert any("names no prices" in note for note in found.notes)
