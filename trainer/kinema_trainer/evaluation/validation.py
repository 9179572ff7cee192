# SPDX-License-Identifier: Apache-2.0
"""The loss on clips that are never trained on.

Every held-out clip is tried at every noise level, with noise
and clean frames that follow from its key, so that two validations differ by nothing but the model, and every layout
gives the same number.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from kinema_api.objective import Objective, Weighting
from kinema_api.validation import Validation
from kinema_trainer.batch import Example
from kinema_trainer.data.reader import pad
from kinema_trainer.data.shards import Sample
from kinema_trainer.models import Adapter
from kinema_trainer.objectives.conditions import condition_of
from kinema_trainer.objectives.loss import Loss
from kinema_trainer.objectives.masks import clean_frames
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.spread import Team

UNWEIGHTED = Objective(weighting=Weighting.NONE, image_weight=1.0)
"""What a validation sums: the mean squared error as it is."""


def levels(count: int) -> tuple[float, ...]:
    """The noise levels of a validation: the middles of equal parts of [0, 1]."""
    return tuple((index + 0.5) / count for index in range(count))


def stream(key: str) -> torch.Generator:
    """The random numbers of a held-out clip."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"kinema-fixed").digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True, slots=True)
class Examples:
    """Turns held-out clips into examples.

    Args:
        objective: its masks are those of training.
        text_length: tokens to which captions are padded.
        images: frames that the task is given.
        temporal: frames of a latent frame, after the first.
    """

    objective: Objective
    text_length: int
    images: int
    temporal: int

    def of(self, sample: Sample, *, sigma: float, weight: float = 1.0) -> Example:
        """A clip at a noise level, always with the same noise."""
        random = stream(sample.key)
        noise = torch.randn(sample.latents.shape, generator=random, dtype=torch.float32)
        frames = sample.latents.shape[1]
        numbers = torch.rand(3 + frames, generator=random, dtype=torch.float64)
        return Example(
            key=sample.key,
            latents=sample.latents.float(),
            noise=noise,
            sigma=torch.tensor(sigma, dtype=torch.float32),
            text=pad(sample.text, length=self.text_length),
            condition=condition_of(
                latents=sample.condition,
                image=sample.image,
                clean=clean_frames(self.objective.masks, frames=frames, numbers=numbers),
                images=self.images,
                temporal=self.temporal,
            ),
            weight=weight,
        )


@contextlib.contextmanager
def judged(model: nn.Module) -> Iterator[None]:
    """A model that is only looked at: no gradients, no dropout, and afterwards spread as before."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Without a backward pass the outermost module would stay whole, and a checkpoint would see that.
                module.reshard()


@dataclass(slots=True)
class Validator:
    """Computes the validation loss; every process of the run takes part.

    Args of note:
        clips: the held-out clips.
        stops: whether the run was told to stop; asked by all processes at the same time.
        moved: called after each forward pass.
    """

    settings: Validation
    clips: Sequence[Sample]
    examples: Examples
    adapter: Adapter
    model: nn.Module
    mesh: Mesh
    team: Team
    loss: Loss
    device: torch.device
    dtype: torch.dtype
    stops: Callable[[], bool]
    moved: Callable[[], None]

    def due(self, *, step: int, last: int) -> bool:
        """Whether a step is followed by a validation."""
        every = self.settings.every_steps
        return bool(every) and (step % every == 0 or step == last)

    def run(self) -> dict[str, float]:
        """The mean loss at each noise level, and the mean of these means; nothing when told to stop."""
        sigmas = levels(self.settings.timesteps)
        sums = [0.0] * len(sigmas)
        with judged(self.model):
            for clip, level, counts in self._turns(len(sigmas)):
                if self.stops():
                    return {}
                value = float(self._error(self.clips[clip], sigma=sigmas[level]))
                sums[level] += value if counts else 0.0
                self.moved()
        means = [total / len(self.clips) for total in self.team.total(sums)]
        found = {f"validation_loss_at_{f'{sigma:.4f}'[2:]}": mean for sigma, mean in zip(sigmas, means, strict=True)}
        return {"validation_loss": sum(means) / len(means), **found}

    def _turns(self, count: int) -> Iterator[tuple[int, int, bool]]:
        """This process's clips and levels, and whether its part counts; all processes have equally many."""
        layout = self.mesh.layout
        speaks = layout.speaks(self.mesh.rank)
        total, width = len(self.clips) * count, layout.data
        for first in range(0, total, width):
            turn = first + layout.data_rank(self.mesh.rank)
            # What is left over at the end is filled up: every process has to gather the model's parts.
            clip, level = divmod(min(turn, total - 1), count)
            yield clip, level, speaks and turn < total

    def _error(self, sample: Sample, *, sigma: float) -> Tensor:
        batch = (self.examples.of(sample, sigma=sigma).to(self.device),)
        prediction = self.adapter.forward(self.model, batch, mesh=self.mesh, dtype=self.dtype)
        share = self.adapter.share(self.model, batch, mesh=self.mesh)
        return self.loss(prediction, batch, share)
