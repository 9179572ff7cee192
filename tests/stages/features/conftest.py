# SPDX-License-Identifier: Apache-2.0
"""A toy pipeline folder, made once a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline

from kinema_api.catalogue import entry
from kinema_trainer import tiny


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder. Its VAE is not calibrated; mean and deviation differ by channel, so that a mix-up shows."""
    torch.manual_seed(0)
    spec = entry("wan2.1-tiny")
    tokenizer = tiny.make_tokenizer(["a rabbit and a bird"])
    vae: Any = tiny.make_vae(spec)
    vae.register_to_config(
        latents_mean=[0.1 * channel - 0.7 for channel in range(16)],
        latents_std=[0.5 + 0.1 * channel for channel in range(16)],
    )
    folder = tmp_path_factory.mktemp("weights") / "pipeline"
    pipeline: Any = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny.make_text_encoder(spec, vocabulary=len(tokenizer)),
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=tiny.make_transformer(spec),
    )
    pipeline.save_pretrained(folder)
    return folder
