# SPDX-License-Identifier: Apache-2.0
"""The training loop: forward, backward, agree, update, save."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from kinema_api.exits import Exit, StageError
from kinema_api.settings import TrainSettings
from kinema_stage.ledger import Activity, Ledger
from kinema_trainer import spread
from kinema_trainer.checkpoints.folders import Position
from kinema_trainer.checkpoints.saver import Saver
from kinema_trainer.data.course import Step
from kinema_trainer.data.reader import Loader
from kinema_trainer.evaluation.judging import nothing_to_say
from kinema_trainer.models import Adapter
from kinema_trainer.objectives.loss import Loss
from kinema_trainer.optim import lora
from kinema_trainer.optim.optimizer import Average, LocalAdamW, clip, set_learning_rate
from kinema_trainer.optim.schedule import learning_rate
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.spread import DTYPES, Team
from kinema_trainer.timing import Phase, Stopwatch


@dataclass(frozen=True, slots=True)
class Result:
    """What one step gave, the same in every process."""

    position: Position
    plan: Step
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each phase of the step; a checkpoint's are of the one before it. This process's own."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the validation that followed the step, if one did."""


@dataclass(slots=True)
class Trainer:
    """One process of a run.

    Args of note:
        on_step: called after each step with its result; only looks.
        judge: called after each step by all processes; gives the validation's numbers where one is due.
        moved: called after each pass, and while the saver waits for a checkpoint that grows.
        saving: entered while a checkpoint holds up the loop.
        interrupted: set by SIGTERM. Once any process has it, all leave before the same pass, with the last whole step.
    """

    settings: TrainSettings
    adapter: Adapter
    model: nn.Module
    loss: Loss
    mesh: Mesh
    optimizer: LocalAdamW
    average: Average | None
    loader: Loader
    team: Team
    saver: Saver
    state: Callable[[], dict[str, Any]]
    device: torch.device
    interrupted: threading.Event
    moved: Callable[[], None]
    on_step: Callable[[Result], None]
    judge: Callable[[int], Mapping[str, float]] = nothing_to_say
    position: Position = field(default_factory=Position)
    saving: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    ledger: Ledger = field(default_factory=Ledger)
    watch: Stopwatch = field(init=False)
    _marks: dict[int, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.device)

    def run(self) -> None:
        """Train from the current position to the last step."""
        self.ledger.switch(Activity.PRODUCTIVE)
        while self.position.step < self.settings.steps:
            try:
                result = self._step()
            except StageError:
                # The checkpoint that is being written is good, and its writers run beside the loop in every process.
                with self._held_up():
                    self.saver.finish()
                raise
            if result is None:
                self._save(wait=True)
                done = f"saved step {self.position.step}" if self.position.step else "made no step yet"
                raise StageError(Exit.INTERRUPTED, f"told to stop: {done} of {self.settings.steps}")
            self.position = result.position
            self.on_step(replace(result, validation=self.judge(self.position.step)))
            last = self.position.step == self.settings.steps
            if last or self.position.step % self.settings.checkpoint.every_steps == 0:
                wait = last or not self.settings.checkpoint.asynchronous
                self._save(wait=wait)
            else:
                self.saver.poll()

    def covered(self, position: Position) -> None:
        """A checkpoint is complete: the work before it is safe. Called by whichever thread has finished it."""
        productive = self._marks.pop(position.step, None)
        if productive is not None:
            self.ledger.saved(productive)

    def _save(self, *, wait: bool) -> None:
        self._marks.setdefault(self.position.step, self.ledger.spent().productive)
        with self._held_up():
            self.saver.save(self.state(), self.position, wait=wait)

    @contextlib.contextmanager
    def _held_up(self) -> Iterator[None]:
        with self.saving(), self.ledger.during(Activity.CHECKPOINT), self.watch.during(Phase.CHECKPOINT):
            yield

    def _step(self) -> Result | None:
        """One optimizer step; None when a process was told to stop, and nothing has changed."""
        began = time.monotonic()
        step = self.position.step + 1
        rate = learning_rate(
            self.settings.schedule,
            peak=self.settings.optimizer.learning_rate,
            step=step,
            steps=self.settings.steps,
        )
        set_learning_rate(self.optimizer, rate)
        lora.begin_step(self.model, self.settings.lora, seed=self.settings.seed, step=step)
        with self.ledger.during(Activity.DATA), self.watch.during(Phase.DATA):
            plan = self.loader.step(self.position.consumed)
        losses: list[torch.Tensor] = []
        for micro in range(self.settings.accumulate):
            with self.watch.during(Phase.WAIT):
                (stops,) = self.team.total([float(self.interrupted.is_set())])
            if stops:
                self.optimizer.zero_grad(set_to_none=True)
                return None
            losses.append(self._accumulate(micro))
            self.moved()
        with self.watch.during(Phase.OPTIMIZER):
            spread.complete_gradients(self.adapter, self.model, self.mesh)
            norm = clip(self.model.parameters(), limit=self.settings.optimizer.clip_norm)
        # Processes that predict the same tokens have the same loss, which counts once.
        counted = float(sum(losses)) if self.mesh.layout.speaks(self.mesh.rank) else 0.0
        with self.watch.during(Phase.WAIT):
            (mean,) = self.team.total([counted])
        self._check(step=step, loss=mean, norm=norm)
        if self.saver.copying:
            with self._held_up():
                self.saver.settle()
        with self.watch.during(Phase.OPTIMIZER):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(step)
        return Result(
            position=Position(step=step, consumed=plan.consumed),
            plan=plan,
            loss=mean,
            gradient_norm=norm,
            learning_rate=rate,
            seconds=time.monotonic() - began,
            phases=self.watch.take(),
        )

    def _accumulate(self, micro: int) -> torch.Tensor:
        """Add the gradients of one forward pass; the loss is what this process's tokens make of the step's mean."""
        with self.ledger.during(Activity.DATA), self.watch.during(Phase.DATA):
            drawn = self.loader.batch(start=self.position.consumed, micro=micro)
            batch = tuple(example.to(self.device) for example in drawn)
        spread.begin_pass(self.model, last=micro + 1 == self.settings.accumulate)
        with self.watch.during(Phase.FORWARD):
            prediction = self.adapter.forward(self.model, batch, mesh=self.mesh, dtype=DTYPES[self.settings.precision])
            share = self.adapter.share(self.model, batch, mesh=self.mesh)
            loss = self.loss(prediction, batch, share) / self.loader.weight(start=self.position.consumed)
        with self.watch.during(Phase.BACKWARD):
            loss.backward()
        return loss.detach()

    def _check(self, *, step: int, loss: float, norm: float) -> None:
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise StageError(
                    Exit.NUMERICS,
                    f"the {name} is {value} at step {step}: lower stages.train.optimizer.learningRate, or check the"
                    " clips for corrupt features; the last checkpoint is unharmed",
                )
