# SPDX-License-Identifier: Apache-2.0
"""Runs whose model is given frames: what is trained on is what diffusers' own transformer is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline

from kinema_api.catalogue import Entry, ImageEncoder
from kinema_api.inputs import Weights
from kinema_api.job import Task
from kinema_api.objective import Masks
from kinema_api.stage import TrainConfig
from kinema_trainer import tiny
from kinema_trainer.batch import Batch
from kinema_trainer.data.reader import Loader
from kinema_trainer.data.shards import Sample, ShardIndex, Sidecar, shard_name, sidecar_name, write_shard
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.objectives import conditions
from kinema_trainer.stages import export

from tests.engine import FEATURES, SPEC, Engine, Train, make_engine
from tests.stages.train.test_training import lines, trained

TEXT = 512
"""Diffusers takes what comes before the last 512 tokens for those of the image."""


def model_of(task: Task) -> Entry:
    """A model of the task, small enough for a unit test."""
    if not task.images:
        return SPEC
    return SPEC.model_copy(
        update={
            "text_length": TEXT,
            "tasks": (task,),
            "pipeline": "WanImageToVideoPipeline",
            "image": ImageEncoder(tokens=5, width=8, positions=task is Task.FLF2V),
            "transformer": SPEC.transformer.model_copy(update={"in_channels": 36}),
        }
    )


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Path]:
    """The pipeline folder of a task; the head is not zero, so that everything matters."""
    made: dict[Task, Path] = {}

    def folder(task: Task) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task.value) / "pipeline"
            pipeline = tiny.make(made[task], spec=model_of(task), seed=1)
            torch.nn.init.normal_(pipeline.transformer.proj_out.weight, std=0.1)
            pipeline.transformer.save_pretrained(made[task] / "transformer")
        return made[task]

    return folder


def engine_of(task: Task, folder: Path, weights: Path) -> Engine:
    """A workspace whose clips have what the task is given."""
    engine = make_engine(folder, weights)
    if not task.images:
        return engine
    stream = torch.Generator().manual_seed(9)
    samples = ShardIndex.open(engine.workspace.local(f"artifacts/features/{FEATURES}"))
    target = engine.workspace.local(f"artifacts/features/{FEATURES}")
    clips = [
        Sample(
            key=sample.key,
            latents=sample.latents,
            text=sample.text,
            condition=torch.randn(sample.latents.shape, generator=stream),
            image=torch.randn((5 * task.images, 8), generator=stream),
        )
        for sample in samples
    ]
    for number in range(0, len(clips), 2):
        shard, part = shard_name(number // 2), clips[number : number + 2]
        records = write_shard(target / shard, part)
        sidecar = Sidecar.model_validate_json((target / sidecar_name(shard)).read_bytes())
        sidecar = sidecar.model_copy(update={"records": records, "size": (target / shard).stat().st_size})
        (target / sidecar_name(shard)).write_text(sidecar.model_dump_json(by_alias=True))
    return engine


def by_diffusers(model: Any, batch: Batch, *, task: Task) -> float:
    """The mean over samples of the plain error, with diffusers' own forward pass."""
    losses = []
    for example in batch:
        frames = example.latents.shape[1]
        clean = example.condition.clean
        kept = torch.zeros(frames, dtype=torch.bool) if clean is None else clean
        levels = torch.where(kept, 0.0, example.sigma)
        hidden = (1 - levels.view(1, -1, 1, 1)) * example.latents + levels.view(1, -1, 1, 1) * example.noise
        image = example.condition.image
        if example.condition.channels is not None:
            hidden = torch.cat([hidden, example.condition.channels])
        plane = example.latents.shape[2] // 2 * (example.latents.shape[3] // 2)
        with torch.no_grad():
            velocity = model(
                hidden[None],
                1000 * levels.repeat_interleave(plane)[None],
                example.text[None],
                encoder_hidden_states_image=None if image is None else image.unflatten(0, (task.images, -1)),
            ).sample[0]
        error = (velocity - (example.noise - example.latents)).square()[:, ~kept]
        losses.append(float(error.mean()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("task", [Task.I2V, Task.FLF2V, Task.V2V])
def test_the_first_loss_is_that_of_diffusers_model(
    tmp_path: Path,
    pipelines: Callable[[Task], Path],
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    task: Task,
) -> None:
    monkeypatch.setattr("tests.engine.SPEC", model_of(task))
    weights = pipelines(task)
    engine = engine_of(task, tmp_path / "workspace", weights)
    masks = Masks(quarter_head=1) if task is Task.V2V else Masks()
    config: TrainConfig = engine.config(
        steps=2,
        objective={"preset": "mug-v", "masks": masks.wire()},
        validation={"everySteps": 2, "clips": 1, "samples": {"everySteps": 2, "steps": 1}},
    ).model_copy(update={"task": task, "weights": Weights(uri=f"file://{weights}")})
    batches: list[Batch] = []
    original = Loader.batch

    def batch(self: Loader, *, start: int, micro: int) -> Batch:
        batches.append(original(self, start=start, micro=micro))
        return batches[-1]

    monkeypatch.setattr(Loader, "batch", batch)
    train(engine, config)
    first = batches[0]
    if task is Task.V2V:
        assert all(
            example.condition.clean is not None and example.condition.clean.tolist() == [True, False]
            for example in first
        )
    else:
        marks = conditions.mask(images=task.images, frames=2, temporal=4)
        for example in first:
            assert example.condition.channels is not None and example.condition.channels.shape == (20, 2, 4, 4)
            assert torch.equal(example.condition.channels[:4, :, 0, 0], marks)
    expected = by_diffusers(ADAPTER.load(weights / "transformer"), first, task=task)
    found = lines(engine, config)
    assert found[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert found[1]["validation_loss"] > 0
    assert engine.workspace.exists(f"{config.run}/training-samples/step-00000002/00-seed0.mp4")


@pytest.mark.parametrize("task", [Task.I2V, Task.FLF2V])
def test_what_is_trained_loads_in_diffusers(
    tmp_path: Path, pipelines: Callable[[Task], Path], train: Train, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    monkeypatch.setattr("tests.engine.SPEC", model_of(task))
    weights = pipelines(task)
    engine = engine_of(task, tmp_path / "workspace", weights)
    config = engine.config(steps=1).model_copy(update={"task": task})
    train(engine, config)
    end = export.run(engine.context(engine.export_config().model_copy(update={"task": task})))
    pipeline: Any = WanImageToVideoPipeline.from_pretrained(engine.workspace.local(f"{config.run}/export"))
    wanted = trained(engine, config)
    assert end.counts["step"] == 1
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in pipeline.transformer.named_parameters())
    before = ADAPTER.load(weights / "transformer").state_dict()
    for name in ("blocks.0.attn2.add_k_proj.weight", "condition_embedder.image_embedder.ff.net.0.proj.weight"):
        assert not torch.equal(before[name], wanted[name]), "the image's part is trained too"
