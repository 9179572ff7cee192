# SPDX-License-Identifier: Apache-2.0
"""One training step of one process of a run, without a device, memory, weights, data or any other process.

The engine's own code runs: its meshes over torch's fake process group, its model on fake tensors, a forward and a
backward pass, clipping, the update. What does not fit together fails here as it would there; what it would hold in
memory is counted by `kinema_trainer.planning.footprint`.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from kinema_api.buckets import Geometry
from kinema_api.catalogue import Entry
from kinema_api.job import Task
from kinema_api.settings import TrainSettings
from kinema_trainer import spread
from kinema_trainer.device import Device
from kinema_trainer.models import adapter
from kinema_trainer.models.configs import config
from kinema_trainer.objectives.loss import Loss
from kinema_trainer.optim import lora, optimizer
from kinema_trainer.parallel.layout import ParallelLayout, widths
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.planning.examples import examples
from kinema_trainer.planning.footprint import Footprint, Part

Parts = Mapping[Part, int]
FEW = 3
"""Blocks after which another one only adds its own: before, the ends of the model decide where the peak lies."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What one process held, in bytes by part."""

    work: Parts
    """At the peak of forward and backward passes."""
    update: Parts
    """At the peak of clipping, the update and the moving average."""
    parameters: int
    """Numbers of this process's parts of all parameters."""
    trained: int
    """Those that are trained."""

    @property
    def peak(self) -> Parts:
        """The larger of the two."""
        return max(self.work, self.update, key=total)

    def grown(self, other: Rehearsal, *, factor: float) -> Rehearsal:
        """This one and so many times what `other`, which has more blocks, has more."""

        def line(low: Parts, high: Parts) -> Parts:
            return {part: round(low.get(part, 0) + factor * (high.get(part, 0) - low.get(part, 0))) for part in Part}

        return Rehearsal(
            work=line(self.work, other.work),
            update=line(self.update, other.update),
            parameters=round(self.parameters + factor * (other.parameters - self.parameters)),
            trained=round(self.trained + factor * (other.trained - self.trained)),
        )


def total(parts: Parts) -> int:
    """Bytes of all parts."""
    return sum(parts.values())


@contextlib.contextmanager
def pretended(*, world: int, rank: int = 0) -> Iterator[None]:
    """A process group of any size in this process alone: collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rehearse(
    model: Entry,
    settings: TrainSettings,
    *,
    task: Task,
    clips: Sequence[Geometry],
    world: int,
    rank: int = 0,
    whole: bool = False,
) -> Rehearsal:
    """Make one step.

    Blocks are alike: two sizes of the model are rehearsed, and what a block adds to the one is added for the rest.

    Args:
        model: the catalogue entry.
        settings: of the train stage.
        task: what the model is given beside captions.
        clips: those of a forward pass.
        world: processes of the run.
        rank: which of them this is.
        whole: rehearse every block.

    Raises:
        StageError: the layout cannot work.
    """
    layers = model.transformer.layers
    period = settings.recompute.every if settings.recompute.mode == "interval" else 1
    few = period * math.ceil(FEW / period)
    with pretended(world=world, rank=rank):
        if whole or layers <= few + period:
            return _step(model, settings, task=task, clips=clips)
        low = _step(_with_layers(model, few), settings, task=task, clips=clips)
        high = _step(_with_layers(model, few + period), settings, task=task, clips=clips)
    return low.grown(high, factor=(layers - few) / period)


def _with_layers(model: Entry, layers: int) -> Entry:
    return model.model_copy(update={"transformer": model.transformer.model_copy(update={"layers": layers})})


def _step(model: Entry, settings: TrainSettings, *, task: Task, clips: Sequence[Geometry]) -> Rehearsal:
    layout = ParallelLayout.of(settings.layout, world=dist.get_world_size(), model=widths(model))
    # Fake tensors of the CPU: their operations and collectives need no device.
    here = Device(device=torch.device("cpu"), backend="fake", name="cpu")
    mesh = Mesh.make(layout, device="cpu", wrap=spread.wrapped(settings.precision))
    family = adapter(model)
    # What compiles, compiles a block's arithmetic; its shapes are those of the block that is not compiled.
    plain = settings.model_copy(update={"compile": False})
    outlined = spread.outline(family, config(model), mesh=mesh, settings=plain)
    with FakeTensorMode(allow_non_fake_inputs=True):
        stage = _Stage(family, spread.fill(family, outlined, device=here), mesh, model, plain)
        with Footprint() as footprint:
            return stage.play(footprint, task=task, clips=clips)


class _Stage:
    """The parts of a training process, on fake tensors."""

    def __init__(self, family: Any, transformer: Any, mesh: Mesh, model: Entry, settings: TrainSettings) -> None:
        self.family = family
        self.transformer = transformer
        self.mesh = mesh
        self.model = model
        self.settings = settings
        self.loss = Loss(
            objective=settings.objective,
            sign=model.velocity.sign,
            patch=model.transformer.patch,
            spatial=model.vae.spatial,
        )

    def play(self, footprint: Footprint, *, task: Task, clips: Sequence[Geometry]) -> Rehearsal:
        """Two steps: what the first one makes lazily is there in the second, which counts."""
        model = self.transformer
        footprint.belongs(model.parameters(), Part.PARAMETERS)
        footprint.belongs(model.buffers(), Part.BUFFERS)
        adam = optimizer.make_optimizer(model, self.settings.optimizer, fused=True)
        optimizer.create_moments(adam, step=0)
        footprint.belongs((tensor for state in adam.state.values() for tensor in state.values()), Part.OPTIMIZER)
        average = optimizer.Average(model, decay=self.settings.ema.decay) if self.settings.ema.enabled else None
        if average is not None:
            footprint.belongs(average.tensors.values(), Part.AVERAGE)
        work: Counter[Part] = Counter()
        for passes in (1, min(2, self.settings.accumulate)):
            gc.collect()
            footprint.mark()
            for index in range(passes):
                self._pass(footprint, task=task, clips=clips, last=index + 1 == passes)
            work = Counter(footprint.peak)
            footprint.mark()
            self._update(adam, average)
        own = [optimizer.local(parameter).numel() for parameter in model.parameters()]
        trained = [optimizer.local(parameter).numel() for parameter in lora.trained(model).values()]
        return Rehearsal(work=work, update=Counter(footprint.peak), parameters=sum(own), trained=sum(trained))

    def _pass(self, footprint: Footprint, *, task: Task, clips: Sequence[Geometry], last: bool) -> None:
        batch = examples(self.model, task=task, clips=clips)
        spread.begin_pass(self.transformer, last=last)
        dtype = spread.DTYPES[self.settings.precision]
        prediction = self.family.forward(self.transformer, batch, mesh=self.mesh, dtype=dtype)
        share = self.family.share(self.transformer, batch, mesh=self.mesh)
        loss = self.loss(prediction, batch, share) / float(len(batch))
        loss.backward()
        gradients = (parameter.grad for parameter in self.transformer.parameters())
        footprint.belongs((gradient for gradient in gradients if gradient is not None), Part.GRADIENTS)

    def _update(self, adam: Any, average: Any) -> None:
        spread.complete_gradients(self.family, self.transformer, self.mesh)
        # All that clipping does is done before the norm becomes a number, which fake tensors have none of.
        with contextlib.suppress(DataDependentOutputException):
            optimizer.clip(self.transformer.parameters(), limit=self.settings.optimizer.clip_norm)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if average is not None:
            average.update(1)
