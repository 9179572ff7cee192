# SPDX-License-Identifier: Apache-2.0
"""What i2v and flf2v are given equals what diffusers' own pipeline gives its transformer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor

from kinema_api.catalogue import entry
from kinema_api.job import Task
from kinema_trainer import tiny
from kinema_trainer.encoding.encoders import Encoders, picture
from kinema_trainer.objectives import conditions

FRAMES, HEIGHT, WIDTH = 9, 32, 48
MODELS = {Task.I2V: "wan2.1-i2v-tiny", Task.FLF2V: "wan2.1-flf2v-tiny"}

Pipelines = Callable[[Task], Path]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    """The toy pipeline folder of a task."""
    made: dict[Task, Path] = {}

    def folder(task: Task) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task.value) / "pipeline"
            tiny.make(made[task], spec=entry(MODELS[task]), seed=1)
        return made[task]

    return folder


def clip() -> Tensor:
    """A clip as the features stage has it: whole grey values, in [-1, 1]."""
    pixels = torch.randint(0, 256, (3, FRAMES, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(4))
    return pixels.float() / 127.5 - 1


def encoders(folder: Path) -> Encoders:
    return Encoders(folder, device=torch.device("cpu"), dtype=torch.float32, text_length=512)


@pytest.mark.parametrize("task", [Task.I2V, Task.FLF2V])
def test_the_condition_is_that_of_the_pipeline(pipelines: Pipelines, task: Task) -> None:
    folder, video = pipelines(task), clip()
    pipeline: Any = WanImageToVideoPipeline.from_pretrained(folder)
    last = video[None, :, -1] if task is Task.FLF2V else None
    _, expected = pipeline.prepare_latents(
        video[None, :, 0], 1, 16, HEIGHT, WIDTH, FRAMES, torch.float32, torch.device("cpu"), last_image=last
    )
    latents = encoders(folder).latents(conditions.blanked(video, images=task.images))
    found = conditions.channels(latents, images=task.images, temporal=4)
    assert found.shape == (20, 3, HEIGHT // 8, WIDTH // 8)
    assert torch.equal(found[:4], expected[0, :4])
    torch.testing.assert_close(found[4:], expected[0, 4:], atol=1e-5, rtol=0)
    assert 16 + len(found) == entry(MODELS[task]).transformer.in_channels == 36


@pytest.mark.parametrize("task", [Task.I2V, Task.FLF2V])
def test_the_image_tokens_are_those_of_the_pipeline(pipelines: Pipelines, task: Task) -> None:
    folder, video = pipelines(task), clip()
    pipeline: Any = WanImageToVideoPipeline.from_pretrained(folder)
    frames = conditions.given_frames(video, images=task.images)
    with torch.no_grad():
        expected = pipeline.encode_image([picture(frame) for frame in frames])
    found = encoders(folder).image(frames)
    assert found.shape == (17 * task.images, 32)
    torch.testing.assert_close(found, expected.flatten(0, 1), atol=1e-5, rtol=0)


def test_masks_are_wans() -> None:
    first = conditions.mask(images=1, frames=3, temporal=4)
    assert first.T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    both = conditions.mask(images=2, frames=3, temporal=4)
    assert both.T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_what_is_not_given_is_grey() -> None:
    video = clip()
    first, both = (conditions.blanked(video, images=count) for count in (1, 2))
    assert torch.equal(first[:, 0], video[:, 0])
    assert not first[:, 1:].any()
    assert torch.equal(both[:, [0, -1]], video[:, [0, -1]])
    assert not both[:, 1:-1].any()


def test_the_condition_sees_no_frame_that_is_not_given(pipelines: Pipelines) -> None:
    encoder, video = encoders(pipelines(Task.FLF2V)), clip()
    other = video.clone()
    other[:, 1:-1] = 0.25
    for images in (1, 2):
        one, two = (encoder.latents(conditions.blanked(each, images=images)) for each in (video, other))
        assert torch.equal(one, two)
    other[:, -1] = 0.25
    one, two = (encoder.latents(conditions.blanked(each, images=2)) for each in (video, other))
    assert not torch.equal(one, two)


def test_decoding_undoes_the_normalisation(pipelines: Pipelines) -> None:
    folder = pipelines(Task.I2V)
    pipeline: Any = WanImageToVideoPipeline.from_pretrained(folder)
    encoder = encoders(folder)
    latents = encoder.latents(clip())
    with torch.no_grad():
        mode = pipeline.vae.encode(clip()[None]).latent_dist.mode()
        expected = pipeline.vae.decode(mode).sample[0].clamp(-1, 1)
    torch.testing.assert_close(encoder.video(latents), expected, atol=1e-5, rtol=0)


def test_a_condition_keeps_what_it_is_not_given_out() -> None:
    nothing = conditions.condition_of(latents=None, image=None, clean=None, images=0, temporal=4)
    assert (nothing.channels, nothing.image, nothing.clean) == (None, None, None)
    given = conditions.condition_of(
        latents=torch.zeros(16, 3, 4, 6, dtype=torch.bfloat16),
        image=torch.zeros(17, 32, dtype=torch.bfloat16),
        clean=None,
        images=1,
        temporal=4,
    )
    assert given.channels is not None and given.channels.shape == (20, 3, 4, 6)
    assert given.channels.dtype == torch.float32
    assert given.image is not None and given.image.dtype == torch.float32
