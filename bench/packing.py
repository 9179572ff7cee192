# SPDX-License-Identifier: Apache-2.0
"""Useful tokens a second of packs, against batches that are padded and batches from buckets.

Clips have 128 to 1024 tokens, log-uniformly. Ours packs them as the train stage does and runs forward and backward
passes of the engine. The references are what anybody can run: diffusers' own transformer over batches of clips at
random, padded to the longest clip of the batch; and over batches of clips of one bucket, padded to the bucket's length,
where a bucket is twice as long as the one before. All take as many tokens a pass at most, padding included, hold the
same weights, and go over the same clips, each once a round. Tokens of padding are not useful.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from bench.common import Goal, Side, report
from bench.lengths import FRAMES, SPEC, log_uniform, shape, tokens
from kinema_api.objective import Objective
from kinema_api.packing import Packing
from kinema_trainer import tiny
from kinema_trainer.batch import Batch, Example
from kinema_trainer.data.costs import Table, predicted
from kinema_trainer.data.course import Course
from kinema_trainer.data.packs import alike
from kinema_trainer.models import adapter
from kinema_trainer.objectives.flow import TIMESTEPS
from kinema_trainer.objectives.loss import Loss

GOALS = {"padded": Goal(at_least=1.5), "bucketed": Goal(at_least=1.1)}
BUDGET = 4 * tokens(FRAMES[1])
"""Tokens of a pass at most: four of the longest clip."""
EDGES: list[int] = [FRAMES[0] * 2**power for power in range(1, 4)]
"""Latent frames of the buckets."""
COORDINATES = 8
LOSS = Loss(objective=Objective(), sign=1.0, patch=SPEC.transformer.patch, spatial=SPEC.vae.spatial)


@dataclass(slots=True)
class Mode:
    """One way to make passes of clips.

    Args:
        name: of it.
        passes: the latent frames of the clips of each pass.
        run: a forward and a backward pass over the clips, each padded to so many latent frames.
        padded: the latent frames that each clip of a pass takes.
    """

    name: str
    passes: list[list[int]]
    run: Callable[[Sequence[int]], None]
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def round(self) -> None:
        """Go over all clips once."""
        began, cpu = time.perf_counter(), time.process_time()
        for clips in self.passes:
            self.run(clips)
        self.seconds.append(time.perf_counter() - began)
        self.processor.append(time.process_time() - cpu)

    @property
    def useful(self) -> int:
        """Tokens of the clips."""
        return sum(tokens(frames) for clips in self.passes for frames in clips)

    @property
    def rate(self) -> float:
        """Useful tokens a second, of the median round."""
        return self.useful / statistics.median(self.seconds)


def example(frames: int) -> Example:
    """A clip of noise."""
    latents = torch.randn(shape(frames))
    text = torch.randn(SPEC.text_length, SPEC.transformer.text_dim)
    return Example(key="clip", latents=latents, noise=torch.randn_like(latents), sigma=torch.rand(()), text=text)


def packed(model: nn.Module) -> Callable[[Sequence[int]], None]:
    """The engine's pass over unequal clips."""
    family = adapter(SPEC)
    family.prepare(model)

    def run(clips: Sequence[int]) -> None:
        batch: Batch = tuple(example(frames) for frames in clips)
        prediction = family.forward(model, batch, dtype=torch.float32)
        LOSS(prediction, batch, family.share(model, batch)).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    return run


def padded(model: nn.Module, length: Callable[[Sequence[int]], int]) -> Callable[[Sequence[int]], None]:
    """Diffusers' own pass over clips padded to one length."""
    transformer: Any = model

    def run(clips: Sequence[int]) -> None:
        size = shape(length(clips))
        latents, mask = torch.zeros(len(clips), *size), torch.zeros(len(clips), *size)
        for index, frames in enumerate(clips):
            latents[index, :, :frames] = torch.randn(shape(frames))
            mask[index, :, :frames] = 1
        noise, sigma = torch.randn_like(latents), torch.rand(len(clips))
        level = sigma.view(-1, 1, 1, 1, 1)
        prediction: Tensor = transformer(
            hidden_states=(1 - level) * latents + level * noise,
            timestep=TIMESTEPS * sigma,
            encoder_hidden_states=torch.randn(len(clips), SPEC.text_length, SPEC.transformer.text_dim),
            return_dict=False,
        )[0]
        ((prediction - (noise - latents)).square() * mask).sum().div(mask.sum()).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    return run


def modes(frames: list[int]) -> list[Mode]:
    """The three, over the same clips."""
    torch.manual_seed(0)
    ours, theirs = tiny.make_transformer(SPEC).train(), tiny.make_transformer(SPEC).train()
    theirs.load_state_dict(ours.state_dict())
    fit = BUDGET // tokens(FRAMES[1])
    at_random = [frames[start : start + fit] for start in range(0, len(frames), fit)]
    buckets = [next(edge for edge in EDGES if count <= edge) for count in frames]
    batches = alike(buckets, {edge: BUDGET // tokens(edge) for edge in EDGES})

    def edge(clips: Sequence[int]) -> int:
        return min(edge for edge in EDGES if max(clips) <= edge)

    return [
        Mode("packs", packs_of(frames), packed(ours)),
        Mode("padded", at_random, padded(theirs, max)),
        Mode("bucketed", [[frames[place] for place in batch] for batch in batches], padded(theirs, edge)),
    ]


def course_of(frames: list[int]) -> Course:
    """The course of a run over the clips."""
    keys = [f"clip-{number:04d}" for number in range(len(frames))]
    table = Table.of(keys, [shape(count) for count in frames], patch=SPEC.transformer.patch, cost=predicted(SPEC))
    return Course(table, seed=0, packing=Packing(tokens=BUDGET))


def packs_of(frames: list[int]) -> list[list[int]]:
    """The packs of one epoch."""
    found: list[list[int]] = []
    course, left = course_of(frames), len(frames)
    for pack in course.packs(0):
        found.append([frames[slot.sample] for slot in pack.slots])
        left -= len(pack.slots)
        if not left:
            return found
    raise AssertionError("a course has no end")


def imbalances(frames: list[int]) -> list[float]:
    """What eight data coordinates would lose to the slowest, step by step, by predicted cost."""
    course, start, found = course_of(frames), 0, []
    while start < len(frames):
        step = course.step(start, passes=1, width=COORDINATES)
        found.append(round(step.imbalance, 4))
        start = step.consumed
    return found


def side(mode: Mode, what: str) -> Side:
    """A mode's rate and what it was made of."""
    raw = {
        "roundSeconds": mode.seconds,
        "roundProcessorSeconds": mode.processor,
        "usefulTokensAProcessorSecond": mode.useful / statistics.median(mode.processor),
        "passes": len(mode.passes),
    }
    return Side(what=what, value=mode.rate, unit="useful tokens a second", raw=raw)


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=96, help="clips of a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frames = log_uniform(options.clips, seed=0)
    ours, *others = modes(frames)
    for mode in (ours, *others):
        mode.run(mode.passes[0])
    for number in range(options.rounds):
        for mode in (ours, *others) if number % 2 == 0 else (*others[::-1], ours):
            mode.round()
    holds = True
    for mode in others:
        holds &= report(
            "packing" if mode.name == "padded" else f"packing_{mode.name}",
            ours=side(ours, "packs of the engine"),
            reference=side(mode, f"diffusers, {mode.name} batches"),
            goal=GOALS[mode.name],
            settings={
                "clips": options.clips,
                "rounds": options.rounds,
                "threads": options.threads,
                "tokens": [tokens(FRAMES[0]), tokens(FRAMES[1])],
                "tokensOfAPass": BUDGET,
                "buckets": [tokens(edge) for edge in EDGES],
                "transformer": SPEC.transformer.model_dump(exclude={"parameters"}),
                "predictedImbalanceOf8": imbalances(frames),
            },
        )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
