# SPDX-License-Identifier: Apache-2.0
"""One training process, as torchrun starts it: `python -m kinema_trainer.worker --config stage.json`."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from kinema_api.exits import Exit, StageError
from kinema_api.names import Stage, artifact_folder
from kinema_api.stage import TrainConfig, artifact_of, load_config
from kinema_stage import logs, pulse, signals, stacks, termination
from kinema_stage.artifact import published
from kinema_stage.ledger import Ledger
from kinema_stage.pace import Phase, Rule
from kinema_stage.watchdog import Stall, Watchdog
from kinema_stage.workspace import Workspace, open_workspace
from kinema_trainer import device, resume, spread
from kinema_trainer.checkpoints import folders, saver
from kinema_trainer.checkpoints.folders import Position
from kinema_trainer.checkpoints.weights import CONFIG, read_config
from kinema_trainer.data.feed import Features, make_loader
from kinema_trainer.data.reader import Split
from kinema_trainer.evaluation.judging import Bench, make_judge
from kinema_trainer.launch import ENV_PARENT, ENV_STARTED
from kinema_trainer.loop import Result, Trainer
from kinema_trainer.models import Adapter, adapter, kernels
from kinema_trainer.numbers.counting import Count
from kinema_trainer.numbers.meter import Meter
from kinema_trainer.numbers.profiling import Profiler
from kinema_trainer.numbers.ranks import RollCall
from kinema_trainer.numbers.reports import Beat, Reporter
from kinema_trainer.numbers.runlog import RunLog
from kinema_trainer.objectives.loss import Loss
from kinema_trainer.optim import lora, optimizer
from kinema_trainer.parallel.layout import ParallelLayout, widths
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.planning import calibration, fitting
from kinema_trainer.spread import Team

logger = logging.getLogger(__name__)

_PEER_GONE = ("connection closed by peer", "connection reset by peer", "gloo", "timed out waiting", "broken pipe")


def main(arguments: list[str] | None = None) -> int:
    """Train, and leave the reason of a failure for the stage that started us."""
    parser = argparse.ArgumentParser(prog="python -m kinema_trainer.worker", description="One training process.")
    parser.add_argument("--config", type=Path, required=True, help="the train stage's config")
    config = load_config(parser.parse_args(arguments).config.read_bytes())
    assert isinstance(config, TrainConfig)
    logs.set_up(config.stage)
    interrupted = threading.Event()
    signals.listen(interrupted)
    reporter = Reporter.from_environment(rank=int(os.environ["RANK"]))
    workspace = open_workspace(config.workspace)
    ledger = Ledger(started=float(os.environ.get(ENV_STARTED, time.monotonic())))
    watchdog = watch(config, workspace=workspace, reporter=reporter, ledger=ledger)
    watchdog.start()
    try:
        with pulse.heard(lambda: watchdog.moved(work=False)):
            train(
                config,
                workspace=workspace,
                reporter=reporter,
                watchdog=watchdog,
                ledger=ledger,
                interrupted=interrupted,
            )
    except BaseException as error:
        code, message = classify(error, workspace=workspace.folder)
        if not isinstance(error, StageError):
            traceback.print_exc()
            logs.TAIL.add(traceback.format_exc())
        watchdog.stop()
        reporter.failed(code, message, tail=logs.TAIL.text)
        # Peers may be stuck in a collective with us: leave without the process group's orderly end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    watchdog.stop()
    return Exit.OK


def watch(config: TrainConfig, *, workspace: Workspace, reporter: Reporter, ledger: Ledger) -> Watchdog:
    """End this process when it hangs, or when its stage is gone; tell the stage each second that it is not frozen."""
    rank, count = int(os.environ["RANK"]), itertools.count()

    def stall(found: Stall) -> None:
        # A process that is still writing its stacks must not look frozen.
        reporter.beat(Beat(number=next(count), phase=Phase.ENDED, limit=watchdog.limit, spent=ledger.spent()))
        address = stacks.store(workspace, stacks.path_of(config, rank=rank), stacks.own())
        reporter.failed(Exit.STALLED, f"rank {rank} {found}", stacks=address, tail=logs.TAIL.text)
        sys.stdout.flush()
        os._exit(Exit.STALLED)

    def beat() -> None:
        reporter.beat(Beat(number=next(count), phase=watchdog.phase, limit=watchdog.limit, spent=ledger.spent()))

    watchdog = Watchdog(
        rule=Rule.of(config),
        on_stall=stall,
        on_beat=beat,
        parent=int(os.environ[ENV_PARENT]),
        orphaned=Exit.STALLED,
    )
    return watchdog


def classify(error: BaseException, *, workspace: Path | None) -> tuple[Exit, str]:
    """Exit code and sentence for whatever ended a process."""
    end = termination.failure(error, workspace=workspace, stage=Stage.TRAIN)
    text = str(error)
    if end.code == Exit.INTERNAL and isinstance(error, dist.DistStoreError):
        return Exit.COMMUNICATION, f"the training processes did not meet: {text.splitlines()[0][:300]}"
    if (
        end.code == Exit.INTERNAL
        and isinstance(error, RuntimeError)
        and (isinstance(error, dist.DistError) or any(word in text.lower() for word in _PEER_GONE))
    ):
        return Exit.COMMUNICATION, f"another training process went away: {text.splitlines()[0][:300]}"
    return Exit(end.code), end.message


def train(
    config: TrainConfig,
    *,
    workspace: Workspace,
    reporter: Reporter,
    watchdog: Watchdog,
    ledger: Ledger,
    interrupted: threading.Event,
) -> None:
    """Everything between the config and the last checkpoint."""
    here = device.find(int(os.environ["LOCAL_RANK"]))
    planned = fitting.check(config, world=int(os.environ["WORLD_SIZE"]), here=here)
    if config.settings.deterministic:
        kernels.use_deterministic()
    team = spread.join(here)
    settings = config.settings
    root = artifact_of(config)
    layout = ParallelLayout.of(settings.layout, world=team.world, model=widths(config.model))
    mesh = Mesh.make(layout, device=here.device.type, wrap=spread.wrapped(settings.precision))
    model = outline(config, workspace=workspace, mesh=mesh)
    split = Split(rank=layout.data_rank(team.rank), world=layout.data, accumulate=settings.accumulate)
    found = resume.point(config, workspace=workspace, team=team)
    features = Features.open(config, workspace=workspace)
    loader = make_loader(config, features=features, split=split, found=found)
    run = Run.prepare(config, model, workspace=workspace, found=found, here=here, team=team)
    if calibration.wanted(config, found=found):
        measured = calibration.Calibration(
            config=config,
            workspace=workspace,
            adapter=run.adapter,
            model=run.model,
            mesh=mesh,
            team=team,
            device=here.device,
            moved=lambda: watchdog.moved(work=False),
        ).cost(features)
        loader.close()
        loader = make_loader(config, features=features, split=split, measured=measured)
    log = None
    if team.leads:
        log = RunLog(workspace, config.run, step=run.position.step, attempt=config.attempt)
        log.event("clips", trained=loader.course.size, held_out=len(features.held))
    meter = Meter(
        settings=settings,
        log=log,
        reporter=reporter,
        count=lambda step: Count.of(
            step, adapter=run.adapter, config=config, shapes=loader.shapes(step), world=team.world
        ),
        device=here,
        ranks=RollCall(here.device, world=team.world, own=layout.alone_in),
        planned=planned,
    )
    profiler = Profiler(
        shared=reporter.folder,
        workspace=workspace,
        run=config.run,
        rank=team.rank,
        device=here.device,
        moved=lambda: watchdog.moved(work=False),
    )

    def on_step(result: Result) -> None:
        meter.step(result)
        profiler.step(result.position.step)

    trainer = Trainer(
        settings=settings,
        adapter=run.adapter,
        model=run.model,
        loss=Loss(
            objective=settings.objective,
            sign=config.model.velocity.sign,
            patch=config.model.transformer.patch,
            spatial=config.model.vae.spatial,
        ),
        mesh=mesh,
        optimizer=run.optimizer,
        average=run.average,
        loader=loader,
        team=team,
        saver=saver.Saver(
            workspace=workspace,
            root=root,
            group=team.background,
            leads=team.leads,
            keep=settings.checkpoint.keep,
            manifest=resume.manifest(config, course=loader.course.frozen()),
            saved=run.position,
            moved=watchdog.moved,
            before=log.upload if log is not None else None,
            on_complete=lambda position: trainer.covered(position),
        ),
        state=run.state,
        device=here.device,
        interrupted=interrupted,
        moved=watchdog.moved,
        on_step=on_step,
        judge=make_judge(
            Bench(
                config=config,
                workspace=workspace,
                features=features,
                adapter=run.adapter,
                model=run.model,
                mesh=mesh,
                team=team,
                device=here.device,
                interrupted=interrupted.is_set,
                moved=watchdog.moved,
                held_up=watchdog.saving,
            )
        ),
        position=run.position,
        saving=watchdog.saving,
        ledger=ledger,
    )
    try:
        trainer.run()
    finally:
        loader.close()
        profiler.close()
        if log is not None:
            log.event("ended", step=trainer.position.step)
            log.close()
    team.meet()
    dist.destroy_process_group()


def outline(config: TrainConfig, *, workspace: Workspace, mesh: Mesh) -> nn.Module:
    """The model, spread, on the meta device: what cannot be trained as asked is refused before any data is touched.

    Raises:
        StageError: it cannot, or there are no converted weights.
    """
    start = artifact_folder(Stage.CONVERT, config.convert_key)
    if published(workspace, start) is None:
        raise StageError(Exit.STORAGE, f"{workspace.uri(start)} is not complete: run the convert stage first")
    read = read_config(workspace.fetch(start, CONFIG))
    return spread.outline(adapter(config.model), read, mesh=mesh, settings=config.settings)


class Run:
    """What a process trains: model, optimizer and average, loaded."""

    def __init__(
        self,
        adapter: Adapter,
        model: nn.Module,
        adam: optimizer.LocalAdamW,
        average: optimizer.Average | None,
    ) -> None:
        self.adapter = adapter
        self.model = model
        self.optimizer = adam
        self.average = average
        self.position = Position()

    @classmethod
    def prepare(
        cls,
        config: TrainConfig,
        outlined: nn.Module,
        *,
        workspace: Workspace,
        found: folders.Found | None,
        here: device.Device,
        team: Team,
    ) -> Run:
        """Give an outlined model its memory, and load all from a checkpoint of the run, or from converted weights."""
        settings = config.settings
        family = adapter(config.model)
        model = spread.fill(family, outlined, device=here)
        if found is None or settings.lora.enabled:
            saver.load(workspace, artifact_folder(Stage.CONVERT, config.convert_key), lora.pretrained(model))
        if settings.lora.enabled:
            lora.initialise(model, seed=settings.seed)
        adam = optimizer.make_optimizer(model, settings.optimizer, fused=here.fused_optimizer)
        optimizer.create_moments(adam, step=found.position.step if found else 0)
        average = optimizer.Average(model, decay=settings.ema.decay) if settings.ema.enabled else None
        run = cls(family, model, adam, average)
        if found is not None:
            saver.load(workspace, found.folder, run.state())
            run.position = found.position
            if team.leads:
                logger.info("going on from step %d", found.position.step)
        return run

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint, sharing the memory of what is trained."""
        state: dict[str, Any] = {
            "model": {name: parameter.detach() for name, parameter in lora.trained(self.model).items()},
            "optimizer": optimizer.moments(self.optimizer),
        }
        return state | ({"ema": dict(self.average.tensors)} if self.average is not None else {})


if __name__ == "__main__":
    sys.exit(main())
