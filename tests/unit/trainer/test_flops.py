# SPDX-License-Identifier: Apache-2.0
"""Operations of a training sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from kinema_api.catalogue import Entry, entry
from kinema_trainer import tiny
from kinema_trainer.batch import Condition, Example
from kinema_trainer.device import Device
from kinema_trainer.models.wan import ADAPTER


def transformer(spec: Entry) -> Any:
    """Diffusers' transformer of an entry on the meta device, as diffusers runs it."""
    dims, image = spec.transformer, spec.image
    with torch.device("meta"):
        return WanTransformer3DModel(
            num_attention_heads=dims.heads,
            attention_head_dim=dims.hidden // dims.heads,
            in_channels=dims.in_channels,
            out_channels=spec.vae.channels,
            text_dim=dims.text_dim,
            ffn_dim=dims.ffn,
            num_layers=dims.layers,
            image_dim=image.width if image else None,
            added_kv_proj_dim=dims.hidden if image else None,
            pos_embed_seq_len=image.given if image and image.positions else None,
        )


def uncounted(spec: Entry, *, samples: int = 1) -> int:
    """Forward operations of the time and modulation MLPs, which torch's counter also sees: once a sample."""
    hidden = spec.transformer.hidden
    return samples * 2 * (256 * hidden + hidden**2 + 6 * hidden**2)


@pytest.mark.parametrize(
    ("model", "shape", "tera"),
    [
        ("wan2.1-t2v-1.3b", (16, 21, 60, 104), 849.0),
        ("wan2.1-t2v-14b", (16, 21, 90, 160), 19570.0),
        ("wan2.1-t2v-14b", (16, 21, 60, 104), 5035.1),
        ("wan2.1-t2v-14b", (16, 1, 60, 104), 126.4),
    ],
)
def test_published_geometries(model: str, shape: tuple[int, ...], tera: float) -> None:
    assert 3 * ADAPTER.flops(entry(model), shape).total / 1e12 == pytest.approx(tera, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("wan2.1-t2v-1.3b", (16, 21, 60, 104)),
        ("wan2.1-t2v-14b", (16, 21, 90, 160)),
        ("wan2.1-i2v-14b-480p", (16, 21, 60, 104)),
        ("wan2.1-flf2v-14b-720p", (16, 21, 90, 160)),
    ],
)
def test_the_formula_is_torchs_count_of_diffusers_model(model: str, shape: tuple[int, ...]) -> None:
    spec = entry(model)
    image = None
    if spec.image is not None:
        frames = 2 if spec.image.positions else 1
        image = torch.zeros(frames, spec.image.tokens, spec.image.width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        transformer(spec)(
            hidden_states=torch.zeros(1, spec.transformer.in_channels, *shape[1:], device="meta"),
            timestep=torch.zeros(1, device="meta"),
            encoder_hidden_states=torch.zeros(1, spec.text_length, spec.transformer.text_dim, device="meta"),
            encoder_hidden_states_image=image,
        )
    total = counter.get_total_flops()
    assert uncounted(spec) < 1e-3 * total
    assert ADAPTER.flops(spec, shape).total == total - uncounted(spec)


def make(spec: Entry, frames: int, height: int, width: int) -> Example:
    shape = (spec.vae.channels, frames, height, width)
    condition = Condition()
    if spec.image is not None:
        channels = spec.transformer.in_channels - spec.vae.channels
        condition = Condition(
            channels=torch.zeros(channels, *shape[1:]), image=torch.zeros(spec.image.given, spec.image.width)
        )
    return Example(
        key="clip",
        latents=torch.zeros(shape),
        noise=torch.zeros(shape),
        sigma=torch.tensor(0.5),
        text=torch.zeros(spec.text_length, spec.transformer.text_dim),
        condition=condition,
    )


@pytest.mark.parametrize("model", ["wan2.1-tiny", "wan2.1-i2v-tiny", "wan2.1-flf2v-tiny"])
def test_a_pack_takes_what_its_samples_take_without_padding(model: str) -> None:
    spec = entry(model)
    pack = (make(spec, 5, 8, 12), make(spec, 2, 4, 6), make(spec, 1, 16, 4))
    built = tiny.make_transformer(spec)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ADAPTER.forward(built, pack, dtype=torch.float32)
    expected = sum(ADAPTER.flops(spec, example.latents.shape).total for example in pack)
    assert expected == counter.get_total_flops() - uncounted(spec, samples=len(pack))


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("cpu", None),
        ("Ascend910B3", None),
    ],
)
def test_only_known_devices_have_a_peak(name: str, tera: float | None) -> None:
    peak = Device(device=torch.device("cpu"), backend="gloo", name=name).peak_flops
    assert peak == (None if tera is None else pytest.approx(tera * 1e12))
