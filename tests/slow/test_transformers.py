# SPDX-License-Identifier: Apache-2.0
"""A pod that has nothing but transformers' own Trainer shows its progress in the status of its job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kinema_api.progress import ENV_CA, ENV_TOKEN, ENV_URL
from kinema_operator import tls

from tests.unit.server.conftest import POST, World, anyio_backend, authority, settings, world

__all__ = ["anyio_backend", "authority", "settings", "world"]

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

STEPS = 4


def train(folder: Path) -> None:
    """A training that knows nothing of Kinema; what makes it post is in its environment."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, inputs: Any, labels: Any) -> Any:
            return {"loss": ((self.layer(inputs) - labels) ** 2).mean()}

    data = [{"inputs": torch.ones(2) * number, "labels": torch.zeros(1)} for number in range(8)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no"
    )
    Trainer(model=Model(), args=arguments, train_dataset=data).train()


async def test_transformers_own_trainer_shows_its_progress(
    world: World, authority: tls.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    (tmp_path / "token").write_text("good")
    monkeypatch.setenv(ENV_URL, str(world.client.base_url.join(POST)))
    monkeypatch.setenv(ENV_CA, str(tmp_path / "ca.crt"))
    monkeypatch.setenv(ENV_TOKEN, str(tmp_path / "token"))
    await asyncio.to_thread(train, tmp_path / "out")
    assert world.progress is not None
    assert (world.progress["percent"], world.progress["step"], world.progress["totalSteps"]) == ("100%", STEPS, STEPS)
    assert float(world.progress["loss"]) > 0
    assert "train_runtime" in world.progress["metrics"]
