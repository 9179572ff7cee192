# SPDX-License-Identifier: Apache-2.0
"""One process of a training whose peak memory is measured: `python -m tests.slow.memory_process RUN RANK WORLD FILE`.

The engine's own loop makes two steps of a model with random weights on random clips. What is read from nowhere and
written to nowhere is data and checkpoints.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kinema_trainer import spread
from kinema_trainer.batch import Batch
from kinema_trainer.data.course import Pack, Slot, Step
from kinema_trainer.device import Device
from kinema_trainer.loop import Trainer
from kinema_trainer.models import adapter
from kinema_trainer.models.configs import config
from kinema_trainer.objectives.loss import Loss
from kinema_trainer.optim import optimizer
from kinema_trainer.parallel.layout import ParallelLayout, widths
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.planning.examples import examples
from kinema_trainer.planning.plan import Request, largest_pass
from kinema_trainer.spread import Team

from tests.slow.memory_runs import RUNS, request_of

STEPS = 2


class Clips:
    """What stands for the loader: random clips of the planned shapes."""

    def __init__(self, request: Request, *, width: int) -> None:
        self._request = request
        self._clips = largest_pass(request)
        self._width = width

    def step(self, start: int) -> Step:
        slots = tuple(Slot(sample=index, position=start + index) for index in range(len(self._clips)))
        passes = self._request.settings.accumulate
        packs = tuple(Pack(slots=slots, lengths=(1,), cost=1.0) for _ in range(self._width))
        return Step(start=start, consumed=start + passes * self._width * len(slots), passes=(packs,) * passes)

    def weight(self, *, start: int) -> float:
        return self.step(start).weight

    def batch(self, *, start: int, micro: int) -> Batch:
        torch.manual_seed(start + micro)
        batch = examples(self._request.model, task=self._request.task, clips=self._clips)
        for example in batch:
            for tensor in (example.latents, example.noise, example.text):
                tensor.normal_()
            example.sigma.fill_(0.5)
        return batch


class NoSaver:
    """Checkpoints are not part of what is measured."""

    copying = False

    def save(self, state: Any, position: Any, *, wait: bool) -> None:
        """Nothing."""

    def poll(self) -> None:
        """Nothing."""


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def trainer(request: Request, *, rank: int, world: int) -> Trainer:
    """The engine as its worker puts it together."""
    here = Device(device=torch.device("cpu"), backend="gloo", name="cpu")
    layout = ParallelLayout.of(request.settings.layout, world=world, model=widths(request.model))
    mesh = Mesh.make(layout, device="cpu", wrap=spread.wrapped(request.settings.precision))
    family = adapter(request.model)
    model = spread.build(family, config(request.model), device=here, mesh=mesh, settings=request.settings)
    with torch.no_grad():
        for parameter in model.parameters():
            optimizer.local(parameter).normal_(std=0.02)
    adam = optimizer.make_optimizer(model, request.settings.optimizer, fused=here.fused_optimizer)
    optimizer.create_moments(adam, step=0)
    ema = request.settings.ema
    background = dist.new_group(backend="gloo")
    assert isinstance(background, dist.ProcessGroup)
    loader: Any = Clips(request, width=layout.data)
    saver: Any = NoSaver()
    return Trainer(
        settings=request.settings,
        adapter=family,
        model=model,
        loss=Loss(
            objective=request.settings.objective,
            sign=request.model.velocity.sign,
            patch=request.model.transformer.patch,
            spatial=request.model.vae.spatial,
        ),
        mesh=mesh,
        optimizer=adam,
        average=optimizer.Average(model, decay=ema.decay) if ema.enabled else None,
        loader=loader,
        team=Team(rank=rank, world=world, background=background),
        saver=saver,
        state=dict,
        device=here.device,
        interrupted=threading.Event(),
        moved=lambda: None,
        on_step=lambda result: None,
    )


def main() -> None:
    """Measure, and print what was found."""
    name, rank, world, meeting = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    request = request_of(RUNS[name])
    request = Request(
        model=request.model,
        task=request.task,
        settings=request.settings.model_copy(update={"steps": STEPS}),
        video=request.video,
        world=world,
    )
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    gc.collect()
    before = status("VmRSS")
    # From here on VmHWM is the peak of what follows.
    Path("/proc/self/clear_refs").write_text("5")
    trainer(request, rank=rank, world=world).run()
    print(json.dumps({"rank": rank, "before": before, "peak": status("VmHWM")}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
