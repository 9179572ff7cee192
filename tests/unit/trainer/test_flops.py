# SPDX-License-Identifier: Apache-2.0
"""Operations of a training sample."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema_api.catalogue import entry
from kinema_trainer import tiny
from kinema_trainer.device import Device
from kinema_trainer.models.wan import ADAPTER


@pytest.mark.parametrize(
    ("model", "shape", "tera"),
    [
        ("wan2.1-t2v-1.3b", (16, 21, 60, 104), 849.0),
        ("wan2.1-t2v-14b", (16, 21, 90, 160), 19570.3),
        ("wan2.1-t2v-14b", (16, 21, 60, 104), 5035.1),
    ],
)
def test_published_geometries(model: str, shape: tuple[int, ...], tera: float) -> None:
    assert ADAPTER.flops(entry(model), shape) / 1e12 == pytest.approx(tera, abs=0.05)


def test_formula_agrees_with_torchs_counter() -> None:
    spec = entry("wan2.1-tiny")
    with torch.device("meta"):
        model = ADAPTER.build(tiny.make_transformer(spec).config)
        inputs = torch.zeros(1, 16, 5, 8, 12), torch.zeros(1), torch.zeros(1, spec.text_length, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ADAPTER.forward(model, latents=inputs[0], sigma=inputs[1], text=inputs[2], dtype=torch.float32)
    # The counter also sees the time and modulation MLPs, once a sample.
    hidden = spec.transformer.hidden
    time = 2 * (256 * hidden + hidden**2 + 6 * hidden**2)
    assert ADAPTER.flops(spec, (16, 5, 8, 12)) == 3 * (counter.get_total_flops() - time)


@pytest.mark.parametrize(
    ("name", "tera"),
    [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA A100-SXM4-80GB", 312), ("cpu", None), ("Ascend910B3", None)],
)
def test_only_known_devices_have_a_peak(name: str, tera: float | None) -> None:
    peak = Device(device=torch.device("cpu"), backend="gloo", name=name).peak_flops
    assert peak == (None if tera is None else pytest.approx(tera * 1e12))
