# SPDX-License-Identifier: Apache-2.0
"""Videos that the model generates while it is trained: the same prompts and seeds each time, by the same sampler.

The model is used as it lies in memory, spread as it is. The sampler is Euler's over shifted noise levels, which needs
no state; noise follows from the seed alone.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kinema_api.exits import Exit, StageError
from kinema_api.validation import TrainingSamples
from kinema_stage.workspace import Workspace
from kinema_trainer.batch import Condition, Example
from kinema_trainer.encoding.mp4 import write_mp4
from kinema_trainer.evaluation.validation import judged
from kinema_trainer.models import Adapter
from kinema_trainer.objectives import flow
from kinema_trainer.parallel.mesh import Mesh

FOLDER = "training-samples"
"""Folder of the run, with one folder for each round."""
LISTING = "samples.jsonl"


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What a video is made from.

    Args of note:
        given: the clip whose shape, condition and clean frames the video has.
        text: [tokens, width], padded.
    """

    prompt: str
    text: Tensor
    given: Example


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One video to make."""

    scene: Scene
    seed: int
    file: str


def plan(scenes: Sequence[Scene], seeds: Sequence[int]) -> list[Shot]:
    """One video for each prompt and seed; a file is named by the prompt's place and the seed."""
    return [
        Shot(scene=scene, seed=seed, file=f"{number:02d}-seed{seed}.mp4")
        for number, scene in enumerate(scenes)
        for seed in dict.fromkeys(seeds)
    ]


def folder_of(run: str, step: int) -> str:
    """Where the videos of a step lie."""
    return f"{run}/{FOLDER}/step-{step:08d}"


def sigmas_of(settings: TrainingSamples) -> list[float]:
    """The noise levels of the sampler, from 1 to 0."""
    even = torch.linspace(1, 0, settings.steps + 1, dtype=torch.float64)
    return [float(level) for level in flow.shifted(even, shift=settings.shift)]


@dataclass(slots=True)
class Previewer:
    """Generates the videos of a round; every process of the run takes part.

    Args of note:
        shots: all videos; data coordinates share them out.
        empty_text: [tokens, width], padded: what guidance leads away from.
        sign: 1 if the family predicts noise - data, -1 for its opposite.
        decode: latents to a clip [3, frames, height, width] in [-1, 1].
        stops: whether the run was told to stop; asked by all processes at the same time.
        moved: called after each denoising step.
    """

    settings: TrainingSamples
    shots: Sequence[Shot]
    empty_text: Tensor
    adapter: Adapter
    model: nn.Module
    mesh: Mesh
    sign: float
    device: torch.device
    dtype: torch.dtype
    decode: Callable[[Tensor], Tensor]
    fps: float
    workspace: Workspace
    run: str
    stops: Callable[[], bool]
    moved: Callable[[], None]

    def due(self, *, step: int, last: int) -> bool:
        """Whether a step is followed by a round."""
        every = self.settings.every_steps
        return bool(every) and (step % every == 0 or step == last)

    def make(self, step: int) -> None:
        """Generate every video of a round into the run's folder; leaves early when told to stop."""
        layout = self.mesh.layout
        own = layout.data_rank(self.mesh.rank)
        done: list[tuple[Shot, Tensor]] = []
        with judged(self.model):
            for first in range(0, len(self.shots), layout.data):
                turn = first + own
                # What is left over at the end is filled up: every process has to gather the model's parts.
                shot = self.shots[min(turn, len(self.shots) - 1)]
                latents = self._denoised(shot)
                if latents is None:
                    return
                if turn < len(self.shots):
                    done.append((shot, latents))
        at = self.mesh.at
        if (at.ring, at.ulysses, at.tensor) == (0, 0, 0):
            for shot, latents in done:
                self._write(shot, latents, folder=folder_of(self.run, step))
        if self.mesh.rank == 0:
            lines = [{"prompt": s.scene.prompt, "seed": s.seed, "file": s.file} for s in self.shots]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            self.workspace.write(f"{folder_of(self.run, step)}/{LISTING}", text.encode())

    def _denoised(self, shot: Shot) -> Tensor | None:
        """The latents of a video, the same in every process of a data coordinate; None when told to stop."""
        given = shot.scene.given.to(self.device)
        stream = torch.Generator().manual_seed(shot.seed)
        latents = torch.randn(given.latents.shape, generator=stream, dtype=torch.float32).to(self.device)
        clean = given.condition.clean
        keep = None if clean is None else clean.view(1, -1, 1, 1)
        text = shot.scene.text.to(self.device)
        sigmas = sigmas_of(self.settings)
        for sigma, following in itertools.pairwise(sigmas):
            if self.stops():
                return None
            if keep is not None:
                latents = torch.where(keep, given.latents, latents)
            velocity = self._velocity(given, latents, sigma=sigma, text=text)
            latents = latents + (following - sigma) * velocity
            self.moved()
        latents = latents if keep is None else torch.where(keep, given.latents, latents)
        if not torch.isfinite(latents).all():
            raise StageError(
                Exit.NUMERICS, f"prompt {shot.scene.prompt!r}, seed {shot.seed}: the model's output is not finite"
            )
        return latents

    def _velocity(self, given: Example, latents: Tensor, *, sigma: float, text: Tensor) -> Tensor:
        """Noise - data at a noise level, guided; [channels, frames, height, width]."""
        # x_t of equal data and noise is that, whatever the level.
        example = replace(
            given, latents=latents, noise=latents, sigma=torch.tensor(sigma, device=latents.device), text=text
        )
        velocity = self._predicted(example)
        if self.settings.guidance != 1:
            away = self._predicted(replace(example, text=self.empty_text.to(latents.device)))
            velocity = away + self.settings.guidance * (velocity - away)
        return velocity

    def _predicted(self, example: Example) -> Tensor:
        """The whole prediction of one sample, put together from those who share its tokens."""
        batch = (example,)
        part = self.adapter.forward(self.model, batch, mesh=self.mesh, dtype=self.dtype)
        share = self.adapter.share(self.model, batch, mesh=self.mesh)
        ((start, stop),) = share.rows
        whole = part.new_zeros((share.lengths[0], part.shape[1]))
        whole[start:stop] = part
        axes = [self.mesh.ulysses, self.mesh.ring]
        if self.mesh.layout.sizes.sequence:
            axes.append(self.mesh.tensor)
        for axis in axes:
            if axis.size > 1:
                dist.all_reduce(whole, group=axis.group)
        patch = self.adapter.patch(self.model)
        return self.sign * flow.latents_of(whole, shape=example.latents.shape, patch=patch)

    def _write(self, shot: Shot, latents: Tensor, *, folder: str) -> None:
        video = self.decode(latents)
        self.moved()
        frames = ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()
        with tempfile.TemporaryDirectory(prefix="kinema-sample-") as name:
            path = Path(name) / shot.file
            write_mp4(path, frames, fps=self.fps)
            self.workspace.upload(path, f"{folder}/{shot.file}")


def given_by(example: Example, *, leading: bool) -> Example:
    """A clip as far as a video is made from it: its condition, and for v2v its leading quarter.

    Args:
        example: the clip.
        leading: whether its leading frames are given as they are.
    """
    frames = example.latents.shape[1]
    clean = None
    if leading and frames > 1:
        clean = torch.arange(frames) < max(1, frames // 4)
    old = example.condition
    return replace(example, condition=Condition(channels=old.channels, image=old.image, clean=clean))
