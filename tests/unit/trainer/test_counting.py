# SPDX-License-Identifier: Apache-2.0
"""Operations of a step against torch's own count of the engine's forward and backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema_api.catalogue import entry
from kinema_api.settings import TrainSettings
from kinema_trainer import spread
from kinema_trainer.batch import Example
from kinema_trainer.models.configs import config
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.numbers.counting import operations
from kinema_trainer.parallel.mesh import Mesh

pytestmark = pytest.mark.unit

SPEC = entry("wan2.1-t2v-1.3b")
SHAPE = (16, 21, 60, 104)
META = torch.device("meta")


@pytest.mark.parametrize("lora", [{}, {"enabled": True, "rank": 1}], ids=["weights", "additions"])
def test_the_models_operations_are_those_of_a_step(lora: dict[str, Any]) -> None:
    """Without kernels that compute scores again, and additions so narrow that their own operations do not count."""
    settings = TrainSettings.model_validate({"precision": "fp32", "attention": "math", "lora": lora})
    model = spread.outline(ADAPTER, config(SPEC), mesh=Mesh(), settings=settings)
    ADAPTER.restore_buffers(model, META)
    latents, text = torch.empty(SHAPE, device=META), torch.empty(SPEC.text_length, SPEC.transformer.text_dim)
    example = Example(key="", latents=latents, noise=latents, sigma=torch.empty(()), text=text).to(META)
    with FlopCounterMode(display=False) as counter:
        ADAPTER.forward(model, (example,), dtype=torch.float32).sum().backward()
    assert counter.get_total_flops() == pytest.approx(operations(ADAPTER, SPEC, settings, SHAPE).model, rel=3e-3)
