# SPDX-License-Identifier: Apache-2.0
"""sample: generate videos with the exported pipeline, one mp4 for each prompt and seed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.job import Task
from kinema_api.names import Stage, artifact_folder
from kinema_api.settings import Video
from kinema_api.stage import SampleConfig
from kinema_stage import artifact, clips
from kinema_stage.context import Context
from kinema_trainer import device
from kinema_trainer.checkpoints import lora_file
from kinema_trainer.encoding.encoders import hide_loading_bars, picture
from kinema_trainer.encoding.mp4 import write_mp4
from kinema_trainer.encoding.work import reel_of
from kinema_trainer.objectives import conditions

CAPTIONS = 4
"""Prompts taken from the dataset when the settings have none."""
LISTING = "samples.jsonl"


@dataclass(frozen=True, slots=True)
class Shot:
    """One video to make."""

    prompt: str
    number: int
    """The prompt's place."""
    seed: int
    file: str


def run(context: Context) -> Termination:
    """Generate what is missing, and publish."""
    config = context.config
    assert isinstance(config, SampleConfig)
    if config.task is Task.V2V:
        raise StageError(
            Exit.USER, f"{config.model.pipeline} cannot be given the leading frames of v2v; disable stages.sample"
        )
    torch.set_num_threads(device.cpu_threads(1))
    folder = context.folder
    shots = plan(config.settings.prompts or _captions(context), config.settings.seeds)
    studio = Studio(context, shots=len(shots))
    for number, shot in enumerate(shots):
        context.check_interrupted()
        if not context.workspace.exists(f"{folder}/{shot.file}"):
            studio.make(shot, number=number)
        studio.report(videos=number + 1)
    lines = [json.dumps({"prompt": shot.prompt, "seed": shot.seed, "file": shot.file}) for shot in shots]
    context.workspace.write(f"{folder}/{LISTING}", ("\n".join(lines) + "\n").encode())
    manifest = artifact.Manifest(
        stage=Stage.SAMPLE,
        key=config.job.uid,
        job=f"{config.job.namespace}/{config.job.name}",
        counts={"videos": len(shots)},
        files=artifact.sizes(context.workspace, folder),
    )
    return artifact.success(context.workspace, folder, artifact.publish(context.workspace, folder, manifest))


def plan(prompts: Iterable[str], seeds: Iterable[int]) -> list[Shot]:
    """One video for each prompt and seed; a file is named by the prompt's place and the seed."""
    return [
        Shot(prompt=prompt, number=number, seed=seed, file=f"{number:02d}-seed{seed}.mp4")
        for (number, prompt), seed in product(enumerate(prompts), dict.fromkeys(seeds))
    ]


def _captions(context: Context) -> list[str]:
    """The first distinct captions of the clips."""
    found = dict.fromkeys(clip.caption for clip in _clips(context))
    return list(found)[:CAPTIONS]


def _clips(context: Context) -> list[clips.Clip]:
    config = context.config
    assert isinstance(config, SampleConfig)
    return list(clips.read(context.workspace, artifact_folder(Stage.PREPARE, config.prepare_key)))


class Studio:
    """Generates videos; the pipeline is loaded when the first one is due.

    Args:
        context: the stage's surroundings.
        shots: how many videos there will be.
    """

    def __init__(self, context: Context, *, shots: int) -> None:
        config = context.config
        assert isinstance(config, SampleConfig)
        self._context = context
        self._config = config
        self._settings = config.settings
        self._total = shots * config.settings.steps

    def report(self, *, videos: int, steps: int = 0) -> None:
        """Report finished videos, and denoising steps of the present one."""
        done = videos * self._settings.steps + steps
        self._context.progress.report(done=done, total=self._total, metrics={"videos": videos})

    def make(self, shot: Shot, *, number: int) -> None:
        """Generate one video into the workspace."""
        frames = self._generate(shot, number=number)
        with tempfile.TemporaryDirectory(prefix="kinema-sample-") as folder:
            path = Path(folder) / shot.file
            write_mp4(path, frames, fps=self._settings.fps)
            self._context.workspace.upload(path, f"{self._context.folder}/{shot.file}")

    @torch.inference_mode()
    def _generate(self, shot: Shot, *, number: int) -> NDArray[np.uint8]:
        """The frames of a video: [frames, height, width, 3]."""

        def after_step(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            self._context.check_interrupted()
            self.report(videos=number, steps=step + 1)
            return values

        output = self._pipeline(
            **self._given(shot),
            prompt=shot.prompt,
            negative_prompt=self._settings.negative_prompt,
            height=self._video.height,
            width=self._video.width,
            num_frames=self._video.frames,
            num_inference_steps=self._settings.steps,
            guidance_scale=self._settings.guidance,
            # On the CPU, so that a seed gives the same noise on every device.
            generator=torch.Generator("cpu").manual_seed(shot.seed),
            max_sequence_length=self._config.model.text_length,
            callback_on_step_end=after_step,
            output_type="np",
        )
        frames = np.asarray(output.frames[0])
        if not np.isfinite(frames).all():
            raise StageError(Exit.NUMERICS, f"prompt {number}, seed {shot.seed}: the model's output is not finite")
        return np.rint(frames.clip(0, 1) * 255).astype(np.uint8)

    def _given(self, shot: Shot) -> dict[str, Image.Image]:
        """The frames that the task begins with, of the clip with the prompt's caption, or else the prompt's place."""
        images = self._config.task.images
        if not images:
            return {}
        found = _clips(self._context)
        if self._config.dataset is None or not found:
            raise StageError(Exit.USER, f"{self._config.task} needs frames of the dataset, which has no clips")
        clip = next((clip for clip in found if clip.caption == shot.prompt), found[shot.number % len(found)])
        with reel_of(self._config.dataset) as reel:
            frames = conditions.given_frames(reel.frames(clip), images=images)
        return dict(zip(("image", "last_image"), map(picture, frames), strict=False))

    @cached_property
    def _video(self) -> Video:
        if self._settings.video is not None:
            return self._settings.video
        first = next(iter(_clips(self._context)), None)
        if first is None:
            raise StageError(Exit.USER, "stages.sample.video is not set and the dataset has no clips to take it from")
        return Video(frames=first.frames, height=first.height, width=first.width, fps=first.fps)

    @cached_property
    def _pipeline(self) -> Any:
        """The exported pipeline on the device, its sampler with the wanted shift."""
        export = f"{self._config.run}/{Stage.EXPORT}"
        if artifact.published(self._context.workspace, export) is None:
            raise StageError(Exit.USER, f"{self._context.workspace.uri(export)}: no export there; enable stages.export")
        hide_loading_bars()
        kind = getattr(diffusers, self._config.model.pipeline)
        found = device.find().device
        half = torch.float32 if found.type == "cpu" else torch.bfloat16
        path = self._context.workspace.fetch(export)
        try:
            pipeline = kind.from_pretrained(path, dtype={"default": half, "vae": torch.float32}, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise StageError(Exit.WEIGHTS, f"{path}: cannot be loaded ({error}); delete it to export again") from error
        lora_file.use(pipeline, path)
        pipeline.to(found)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = shifted(pipeline.scheduler, self._settings.shift)
        return pipeline


def shifted(scheduler: Any, shift: float) -> Any:
    """The same sampler with another flow shift, whatever its class calls it."""
    name = "flow_shift" if "flow_shift" in scheduler.config else "shift"
    return type(scheduler).from_config(scheduler.config, **{name: shift})
