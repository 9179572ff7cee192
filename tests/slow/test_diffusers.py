# SPDX-License-Identifier: Apache-2.0
"""What was trained, weights or additions, loads in diffusers elsewhere and gives the trainer's own forward pass."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema_api.stage import TrainConfig
from kinema_trainer import spread
from kinema_trainer.batch import Example
from kinema_trainer.checkpoints import saver
from kinema_trainer.checkpoints.folders import newest
from kinema_trainer.checkpoints.weights import read_config
from kinema_trainer.device import Device
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.objectives import flow
from kinema_trainer.optim import lora
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.stages import export

from tests.engine import SPEC, Engine, Train, engine, train, weights
from tests.fresh import fresh_environment

__all__ = ["engine", "train", "weights"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ELSEWHERE = """
import importlib.util, sys, torch
from pathlib import Path
from diffusers import WanPipeline

assert importlib.util.find_spec("kinema_trainer") is None, "the environment is not fresh"
folder, given, result = sys.argv[1:]
pipeline = WanPipeline.from_pretrained(folder)
if (Path(folder) / "pytorch_lora_weights.safetensors").exists():
    pipeline.load_lora_weights(folder)
# Tensors of a mapped file lie at odd addresses, where kernels sum in another order.
for parameter in pipeline.transformer.parameters():
    parameter.data = parameter.data.clone()
with torch.no_grad():
    output = pipeline.transformer(**torch.load(given), return_dict=False)[0]
torch.save(output, result)
"""
CPU = Device(device=torch.device("cpu"), backend="gloo", name="cpu")


def sample() -> Example:
    stream = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn((16, 3, 6, 4), generator=stream) for _ in range(2))
    text = torch.randn((SPEC.text_length, SPEC.transformer.text_dim), generator=stream)
    return Example(key="a", latents=latents, noise=noise, sigma=torch.tensor(0.7), text=text)


def own_forward(engine: Engine, config: TrainConfig, *, under: str) -> torch.Tensor:
    """The prediction of the engine's model with the values of the newest checkpoint."""
    found = newest(engine.workspace, f"{config.run}/checkpoints")
    assert found is not None
    settings = read_config(engine.weights / "transformer")
    model = spread.build(ADAPTER, settings, device=CPU, mesh=Mesh(), settings=config.settings).eval()
    saver.load(engine.workspace, f"artifacts/convert/{config.convert_key}", lora.pretrained(model))
    state = {name: parameter.detach() for name, parameter in lora.trained(model).items()}
    saver.load(engine.workspace, found.folder, {under: state})
    return predicted(model)


def predicted(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return ADAPTER.forward(model, (sample(),), dtype=torch.float32)


@pytest.mark.parametrize("under", ["model", "ema"])
@pytest.mark.parametrize("kind", ["weights", "additions"])
def test_a_fresh_environment_gives_the_trainers_own_forward(
    engine: Engine, train: Train, tmp_path: Path, kind: str, under: str
) -> None:
    settings: dict[str, Any] = {"ema": {"enabled": under == "ema", "decay": 0.5}, "optimizer": {"learningRate": 0.003}}
    if kind == "additions":
        settings["lora"] = {"enabled": True, "rank": 4, "alpha": 6}
    config = engine.config(**settings)
    train(engine, config)
    export.run(engine.context(engine.export_config(ema=under == "ema")))
    wanted = own_forward(engine, config, under=under)
    example = sample()
    given = {
        "hidden_states": flow.noisy(example)[None],
        "timestep": flow.TIMESTEPS * example.sigma[None],
        "encoder_hidden_states": example.text[None],
    }
    torch.save(given, tmp_path / "given.pt")
    folder = engine.workspace.local(f"{config.run}/export")
    command = [str(fresh_environment()), "-c", ELSEWHERE, str(folder), str(tmp_path / "given.pt")]
    done = subprocess.run(
        [*command, str(tmp_path / "result.pt")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = flow.tokens(torch.load(tmp_path / "result.pt")[0], patch=SPEC.transformer.patch)
    before = predicted(ADAPTER.load(engine.weights / "transformer"))
    assert float((found - wanted).abs().max()) <= 1e-6
    assert float((wanted - before).abs().max()) > 1e-3, "what was trained changes the prediction"
