# SPDX-License-Identifier: Apache-2.0
"""What looks at the model between two steps: validation, and videos of the same prompts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinema_api.exits import Exit, StageError
from kinema_api.job import Task
from kinema_api.stage import TrainConfig
from kinema_stage.weights import fetch
from kinema_stage.workspace import Workspace
from kinema_trainer.data.feed import Features
from kinema_trainer.data.reader import Cache, Chosen, pad
from kinema_trainer.encoding.encoders import Encoders
from kinema_trainer.evaluation.previews import Previewer, Scene, given_by, plan
from kinema_trainer.evaluation.validation import UNWEIGHTED, Examples, Validator
from kinema_trainer.models import Adapter
from kinema_trainer.objectives.loss import Loss
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.spread import DTYPES, Team

logger = logging.getLogger(__name__)

HELD_BYTES = 64 << 20
"""Of held-out clips that are kept in memory: a clip is tried at all noise levels in a row, and there may be many."""


def nothing_to_say(step: int) -> dict[str, float]:
    """What is said of a run that nobody judges."""
    return {}


@dataclass(slots=True)
class Judge:
    """Called after each step by all processes; returns the numbers that there are to it.

    Args of note:
        held_up: entered while videos are made.
    """

    last: int
    validator: Validator | None = None
    previewer: Previewer | None = None
    held_up: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def __call__(self, step: int) -> dict[str, float]:
        """Judge the model after a step, where one of both is due."""
        found: dict[str, float] = {}
        if self.validator is not None and self.validator.due(step=step, last=self.last):
            found = self.validator.run()
        if self.previewer is not None and self.previewer.due(step=step, last=self.last):
            with self.held_up():
                self.previewer.make(step)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Where a run stands for those who judge it: see `kinema_trainer.loop.Trainer`."""

    config: TrainConfig
    workspace: Workspace
    features: Features
    adapter: Adapter
    model: torch.nn.Module
    mesh: Mesh
    team: Team
    device: torch.device
    interrupted: Callable[[], bool]
    moved: Callable[[], None]
    held_up: Callable[[], contextlib.AbstractContextManager[None]]

    @property
    def examples(self) -> Examples:
        """What makes examples of clips."""
        model = self.config.model
        return Examples(
            objective=self.config.settings.objective,
            text_length=model.text_length,
            images=self.config.task.images,
            temporal=model.vae.temporal,
        )

    def stops(self) -> bool:
        """Whether any process was told to stop; all have to ask at the same time."""
        (told,) = self.team.total([float(self.interrupted())])
        return told > 0


def make_judge(bench: Bench) -> Judge:
    """Whoever judges a run, as its settings say.

    Raises:
        StageError: prompts cannot be encoded.
    """
    validation = bench.config.settings.validation
    return Judge(
        last=bench.config.settings.steps,
        validator=_validator(bench) if validation.every_steps else None,
        previewer=_previewer(bench) if validation.samples.every_steps else None,
        held_up=bench.held_up,
    )


def _validator(bench: Bench) -> Validator:
    config, held = bench.config, bench.features.held
    if bench.team.leads:
        total = len(bench.features.samples)
        logger.info("held out %d of %d clips for validation; they are never trained on", len(held), total)
    return Validator(
        settings=config.settings.validation,
        clips=Chosen(Cache(bench.features.samples, limit=HELD_BYTES), held),
        examples=bench.examples,
        adapter=bench.adapter,
        model=bench.model,
        mesh=bench.mesh,
        team=bench.team,
        loss=Loss(
            objective=UNWEIGHTED,
            sign=config.model.velocity.sign,
            patch=config.model.transformer.patch,
            spatial=config.model.vae.spatial,
        ),
        device=bench.device,
        dtype=DTYPES[config.settings.precision],
        stops=bench.stops,
        moved=bench.moved,
    )


def _previewer(bench: Bench) -> Previewer:
    config = bench.config
    settings = config.settings.validation.samples
    fps = float(bench.features.samples[0].meta.get("fps", 16))
    return Previewer(
        settings=settings,
        shots=plan(_scenes(bench), settings.seeds),
        empty_text=pad(bench.features.empty_text, length=config.model.text_length),
        adapter=bench.adapter,
        model=bench.model,
        mesh=bench.mesh,
        sign=config.model.velocity.sign,
        device=bench.device,
        dtype=DTYPES[config.settings.precision],
        decode=lambda latents: _encoders(bench, "vae").video(latents),
        fps=fps,
        workspace=bench.workspace,
        run=config.run,
        stops=bench.stops,
        moved=bench.moved,
    )


def _scenes(bench: Bench) -> list[Scene]:
    """A scene for each prompt, or for the captions of the first clips; held-out ones where there are some."""
    features, settings = bench.features, bench.config.settings.validation.samples
    places = features.held or range(len(features.samples))
    count = len(settings.prompts) or min(settings.count, len(places))
    clips = [features.samples[places[number % len(places)]] for number in range(count)]
    leading = bench.config.task is Task.V2V
    given = [given_by(bench.examples.of(clip, sigma=1.0), leading=leading) for clip in clips]
    if not settings.prompts:
        return [
            Scene(prompt=str(clip.meta.get("caption", clip.key)), text=example.text, given=example)
            for clip, example in zip(clips, given, strict=True)
        ]
    length = bench.config.model.text_length
    texts = bench.team.tell(_encoded(bench, settings.prompts) if bench.team.leads else None)
    return [
        Scene(prompt=prompt, text=pad(text, length=length), given=replace(example, text=pad(text, length=length)))
        for prompt, text, example in zip(settings.prompts, texts, given, strict=True)
    ]


def _encoded(bench: Bench, prompts: Sequence[str]) -> list[Tensor]:
    """The embedding of each prompt, [tokens, width]; the encoder is gone afterwards."""
    encoders = _encoders(bench, "text_encoder", "tokenizer")
    return [encoders.text(prompt) for prompt in prompts]


def _encoders(bench: Bench, *parts: str) -> Encoders:
    """The pretrained encoders, none of them loaded yet."""
    weights = bench.config.weights
    if weights is None:
        raise StageError(
            Exit.USER,
            "stages.train.validation.samples needs the pretrained encoders, but the stage's config names no weights",
        )
    return Encoders(
        fetch(weights, *parts),
        device=bench.device,
        dtype=torch.float32 if bench.device.type == "cpu" else torch.bfloat16,
        text_length=bench.config.model.text_length,
    )
