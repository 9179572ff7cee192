# SPDX-License-Identifier: Apache-2.0
"""The toy model learns: through the real stages, and judged by what diffusers makes of the export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from torch.nn.functional import cosine_similarity

from kinema_api.catalogue import entry
from kinema_api.names import Stage
from kinema_api.stage import ExportConfig, FeaturesConfig, TrainConfig, artifact_of
from kinema_trainer import tiny
from kinema_trainer.batch import Example
from kinema_trainer.data.reader import pad
from kinema_trainer.data.shards import Sample, ShardIndex
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.objectives import flow
from kinema_trainer.objectives.loss import Loss

from tests.slow.pipeline import MODEL, Pipeline, make_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DRAWS, SEEDS = 5, 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A finished job over four clips; KINEMA_TEST_VIDEOS may name a folder of four videos with captions."""
    root = tmp_path_factory.mktemp("learning")
    named = os.environ.get("KINEMA_TEST_VIDEOS")
    dataset = Path(named) if named else make_dataset(root / "videos")
    tiny.make(root / "weights", spec=entry(MODEL), videos=dataset)
    pipeline = Pipeline(root, dataset, root / "weights", stages={"prepare": {"video": {"clipsPerVideo": 1}}})
    pipeline.run(Stage.CHECK, Stage.PREPARE, Stage.FEATURES, Stage.CONVERT, Stage.TRAIN, Stage.EXPORT)
    return pipeline


@pytest.fixture(scope="module")
def clips(trained: Pipeline) -> list[Sample]:
    """The encoded clips."""
    config = trained.config(Stage.FEATURES)
    assert isinstance(config, FeaturesConfig)
    index = ShardIndex.open(trained.workspace.local(artifact_of(config)))
    assert len(index) == 4
    return list(index)


def loss(model: Any, clips: list[Sample], pipeline: Pipeline) -> float:
    """The mean loss over fixed draws of noise and timestep for each clip."""
    config = pipeline.config(Stage.TRAIN)
    assert isinstance(config, TrainConfig)
    objective, length = config.settings.objective, config.model.text_length
    judge = Loss(objective=objective, sign=1.0, patch=(1, 2, 2), spatial=8)
    found: list[torch.Tensor] = []
    for number, clip in enumerate(clips):
        streams = [flow.generator(seed=0, position=DRAWS * number + index) for index in range(DRAWS)]
        draws = [flow.draw(objective, shape=clip.latents.shape, stream=stream) for stream in streams]
        batch = tuple(
            Example(
                key=clip.key,
                latents=clip.latents.float(),
                noise=draw.noise,
                sigma=draw.sigma,
                text=pad(clip.text, length=length),
            )
            for draw in draws
        )
        with torch.no_grad():
            prediction = ADAPTER.forward(model, batch, dtype=torch.float32)
        found.append(judge(prediction, batch, ADAPTER.share(model, batch)) / DRAWS)
    return float(torch.stack(found).mean())


def test_the_loss_falls_below_half_of_the_untrained(trained: Pipeline, clips: list[Sample]) -> None:
    config = trained.config(Stage.EXPORT)
    assert isinstance(config, ExportConfig)
    before = loss(ADAPTER.load(trained.weights / "transformer"), clips, trained)
    after = loss(ADAPTER.load(trained.workspace.local(f"{artifact_of(config)}/transformer")), clips, trained)
    print(f"\nloss over {DRAWS} fixed draws a clip: untrained {before:.3f}, trained {after:.3f} ({after / before:.2f})")
    assert after < 0.5 * before


def sample(trained: Pipeline, captions: list[str], clip: Sample) -> torch.Tensor:
    """Latents of every caption and seed: [captions, seeds, channels, frames, height, width]."""
    config = trained.config(Stage.EXPORT)
    pipe: Any = WanPipeline.from_pretrained(trained.workspace.local(artifact_of(config)))
    pipe.set_progress_bar_config(disable=True)
    channels, frames, height, width = clip.latents.shape
    latents: torch.Tensor = pipe(
        prompt=captions,
        height=8 * height,
        width=8 * width,
        num_frames=4 * (frames - 1) + 1,
        num_inference_steps=20,
        guidance_scale=1.0,
        num_videos_per_prompt=SEEDS,
        generator=[torch.Generator().manual_seed(seed) for _ in captions for seed in range(SEEDS)],
        output_type="latent",
        max_sequence_length=config.model.text_length,
    ).frames
    return latents.reshape(len(captions), SEEDS, channels, frames, height, width)


def hits(sampled: torch.Tensor, data: torch.Tensor) -> int:
    """How many samples are nearest to the clip of their place, each less its own mean."""
    centred = data.flatten(1) - data.flatten(1).mean(dim=1, keepdim=True)
    count = 0
    for place, samples in enumerate(sampled):
        for one in samples:
            nearest = cosine_similarity((one - one.mean()).flatten()[None], centred).argmax()
            count += int(nearest == place)
    return count


def test_samples_look_like_the_clip_of_their_caption(trained: Pipeline, clips: list[Sample]) -> None:
    torch.set_num_threads(2)
    captions = [str(clip.meta["caption"]) for clip in clips]
    assert len(set(captions)) == 4
    data = torch.stack([clip.latents for clip in clips])
    sampled = sample(trained, captions, clips[0])
    own, shuffled = hits(sampled, data), hits(sampled.roll(1, dims=0), data)
    ratios = [float(one.std() / data.std()) for one in sampled.flatten(0, 1)]
    print(f"\nnearest to their own clip: {own} of 16, captions shuffled {shuffled}", end="; ")
    print(f"standard deviation {min(ratios):.3f} to {max(ratios):.3f} of the data's")
    assert own >= 14
    assert shuffled <= 8
    assert 0.5 < min(ratios) <= max(ratios) < 2
