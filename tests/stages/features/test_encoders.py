# SPDX-License-Identifier: Apache-2.0
"""Features equal what diffusers' own classes and pipeline compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from kinema_api.exits import Exit, StageError
from kinema_trainer.encoding.encoders import Encoders

CPU = torch.device("cpu")
LENGTH = 64


def encoders(folder: Path, dtype: torch.dtype = torch.float32) -> Encoders:
    return Encoders(folder, device=CPU, dtype=dtype, text_length=LENGTH)


def clip() -> torch.Tensor:
    return torch.rand(3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_are_the_normalised_mode(weights: Path) -> None:
    vae = AutoencoderKLWan.from_pretrained(weights, subfolder="vae")
    with torch.no_grad():
        mode = vae.encode(clip()[None]).latent_dist.mode()[0]
    expected = torch.stack(
        [
            (channel - mean) / std
            for channel, mean, std in zip(mode, vae.config.latents_mean, vae.config.latents_std, strict=True)
        ]
    )
    latents = encoders(weights).latents(clip())
    assert latents.shape == (16, 3, 4, 6)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(latents, mode, atol=1e-2)


@pytest.mark.parametrize(
    "caption", ["A rabbit wakes.", "  A  rabbit\n wakes &amp;  looks ", "", "a rabbit and a bird " * 40]
)
def test_text_is_that_of_the_pipeline(weights: Path, caption: str) -> None:
    pipeline = WanPipeline.from_pretrained(weights)
    with torch.no_grad():
        padded = pipeline._get_t5_prompt_embeds(caption, max_sequence_length=LENGTH)[0]
    text = encoders(weights).text(caption)
    assert 1 <= len(text) <= LENGTH
    torch.testing.assert_close(text, padded[: len(text)], atol=1e-6, rtol=0)
    assert not padded[len(text) :].any()
    assert padded[len(text) - 1].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(weights: Path, dtype: torch.dtype) -> None:
    full, half = encoders(weights), encoders(weights, dtype)
    assert half.latents(clip()).dtype == half.text("a rabbit").dtype == dtype
    assert torch.equal(half.latents(clip()), full.latents(clip()).to(dtype)), "only the result is rounded"
    torch.testing.assert_close(half.text("a rabbit").float(), full.text("a rabbit"), atol=0.15, rtol=0.1)


def test_a_truncated_download_is_named(weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(weights, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(StageError, match="broken/vae") as caught:
        encoders(broken).latents(clip())
    assert caught.value.code is Exit.WEIGHTS


def test_a_cut_off_weight_file_is_named(weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(weights, broken)
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(StageError, match="broken/vae") as caught:
        encoders(broken).latents(clip())
    assert caught.value.code is Exit.WEIGHTS
