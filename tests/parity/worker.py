# SPDX-License-Identifier: Apache-2.0
"""One process of a parity test: runs the engine's own loop over a layout, and compares with what one process found."""

from __future__ import annotations

import datetime
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from kinema_api.layout import Widths
from kinema_api.settings import TrainSettings
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer import spread
from kinema_trainer.checkpoints import saver
from kinema_trainer.device import Device
from kinema_trainer.loop import Trainer
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.objectives.loss import Loss
from kinema_trainer.optim import lora, optimizer
from kinema_trainer.parallel.layout import ParallelLayout
from kinema_trainer.parallel.mesh import Mesh

from tests.parity.cases import CONFIGS, PACKS, Case, packs
from tests.parity.mutations import broken, know

CPU = Device(device=torch.device("cpu"), backend="gloo", name="cpu")
WIDTHS = Widths(heads=4, hidden=96, ffn=128)
RELATIVE, OF_ALL = 1e-5, 1e-7
"""Allowed: the one of a tensor's own norm and the other of all tensors' norm."""


@dataclass(frozen=True)
class Outcome:
    """What a process found.

    Args:
        worst: the largest difference from one process, in units of what is allowed; by part, and by the tensor's name.
        loss: of the last step.
    """

    worst: dict[str, tuple[float, str]]
    loss: float


class Clips:
    """Stands for the loader: every data coordinate takes its packs of the same steps."""

    def __init__(self, case: Case, *, rank: int, count: int) -> None:
        self._case, self._rank, self._count = case, rank, count

    def step(self, start: int) -> Any:
        samples = len(self._case.shapes)
        return SimpleNamespace(start=start, consumed=start + samples, weight=float(samples), samples=samples)

    def weight(self, *, start: int) -> float:
        return float(len(self._case.shapes))

    def batch(self, *, start: int, micro: int) -> Any:
        step = start // len(self._case.shapes)
        return packs(self._case, step=step)[micro * self._count + self._rank]


class Unsaved:
    """Stands for the saver."""

    copying = False

    def save(self, *args: Any, **kwargs: Any) -> None: ...

    def poll(self) -> None: ...

    def finish(self) -> None: ...


def trainer(case: Case, *, folder: Path) -> Trainer:
    """The loop of a case, with the weights that the folder holds."""
    layout = ParallelLayout.of(case.train(data=1).layout, world=case.world, model=WIDTHS)
    settings: TrainSettings = case.train(data=layout.data)
    mesh = Mesh.make(layout, device="cpu", wrap=spread.wrapped(settings.precision))
    know(mesh)
    model = spread.build(ADAPTER, CONFIGS[case.task], device=CPU, mesh=mesh, settings=settings)
    saver.load(FolderWorkspace(f"file://{folder}"), f"weights-{case.task}", lora.pretrained(model))
    if settings.lora.enabled:
        lora.initialise(model, seed=settings.seed, zero=False)
        lora.begin_step(model, settings.lora, seed=settings.seed, step=1)
    adam = optimizer.make_optimizer(model, settings.optimizer, fused=True)
    optimizer.create_moments(adam, step=0)
    stubs: dict[str, Any] = {
        "loader": Clips(case, rank=layout.data_rank(mesh.rank), count=layout.data),
        "saver": Unsaved(),
    }
    assert settings.accumulate * layout.data == PACKS
    return Trainer(
        settings=settings,
        adapter=ADAPTER,
        model=model,
        loss=Loss(objective=settings.objective, sign=1.0, patch=(1, 2, 2), spatial=8),
        mesh=mesh,
        optimizer=adam,
        average=optimizer.Average(model, decay=settings.ema.decay),
        team=spread.Team(rank=mesh.rank, world=case.world, background=dist.group.WORLD),  # type: ignore[arg-type]
        state=dict,
        device=CPU.device,
        interrupted=threading.Event(),
        moved=lambda: None,
        on_step=lambda result: None,
        **stubs,
    )


def train(case: Case, *, folder: Path) -> tuple[dict[str, dict[str, Tensor]], float]:
    """The whole tensors by part and name, and the loss."""
    run = trainer(case, folder=folder)
    results: list[float] = []
    run.on_step = lambda result: results.append(result.loss)
    if case.steps:
        run.run()
        assert run.average is not None
        model: dict[str, Tensor] = dict(lora.trained(run.model))
        parts = {"parameters": model, "average": dict(run.average.tensors)}
        parts |= optimizer.moments(run.optimizer)
        return {
            part: {name: whole(tensor) for name, tensor in found.items()} for part, found in parts.items()
        }, results[-1]
    losses = sum(float(run._accumulate(micro)) for micro in range(run.settings.accumulate))
    spread.complete_gradients(run.adapter, run.model, run.mesh)
    (loss,) = run.team.total([losses if run.mesh.layout.speaks(run.mesh.rank) else 0.0])
    gradients = {name: parameter.grad for name, parameter in lora.trained(run.model).items()}
    found = {name: whole(gradient) for name, gradient in gradients.items() if gradient is not None}
    assert found.keys() == gradients.keys(), f"no gradient: {sorted(gradients.keys() - found.keys())}"
    norm = optimizer.clip(run.model.parameters(), limit=0.0)
    return {"gradients": found, "norm": {"all": torch.tensor(norm)}}, loss


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, however it is cut."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference in units of what is allowed, and whose."""
    everything = float(torch.stack([tensor.double().norm() for tensor in wanted.values()]).norm())
    assert found.keys() == wanted.keys()
    worst = (0.0, "")
    for name, tensor in wanted.items():
        difference = float((found[name].double() - tensor.double()).norm())
        allowed = RELATIVE * float(tensor.double().norm()) + OF_ALL * everything
        ratio = difference / allowed if difference == difference else float("inf")
        worst = max(worst, (ratio, name))
    return worst


def run(case: Case, *, folder: Path, reference: Path) -> Outcome:
    """Train, and compare; a single process writes what others compare with."""
    with broken(case.broken):
        found, loss = train(case, folder=folder)
    if case.world == 1:
        torch.save({"found": found, "loss": loss}, reference)
        return Outcome(worst={}, loss=loss)
    wanted = torch.load(reference, weights_only=True)
    worst = {part: compare(found[part], wanted["found"][part]) for part in wanted["found"]}
    worst["loss"] = (abs(loss - wanted["loss"]) / (RELATIVE * abs(wanted["loss"])), "")
    return Outcome(worst=worst, loss=loss)


def serve(
    pipe: Connection, function: Callable[..., Any], arguments: dict[str, Any], store: Path, rank: int, world: int
) -> None:
    """Answer with what a function returns, in a process group."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=120),
        )
        try:
            answer: Any = function(**arguments)
        finally:
            dist.destroy_process_group()
    except Exception:  # a process that fails tells the test why
        answer = RuntimeError(traceback.format_exc())
    pipe.send(answer)
    # Tensors are fetched from here while the other end reads the answer.
    pipe.poll(None)
