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

import torch
import torch.distributed as dist
from torch import nn

from kinema_api.exits import Exit, StageError
from kinema_api.keys import digest
from kinema_api.names import Stage, artifact_folder
from kinema_api.stage import TrainConfig, artifact_of, load_config
from kinema_stage import logs, pulse, signals, stacks, termination
from kinema_stage.artifact import Manifest, published
from kinema_stage.ledger import Ledger
from kinema_stage.pace import Phase, Rule
from kinema_stage.watchdog import Stall, Watchdog
from kinema_stage.workspace import Workspace, open_workspace
from kinema_trainer import checkpoints, device, optimizer, parallel, saver
from kinema_trainer.checkpoints import Position
from kinema_trainer.data import Loader, Split
from kinema_trainer.launch import ENV_PARENT, ENV_STARTED
from kinema_trainer.loop import Trainer
from kinema_trainer.meter import Meter
from kinema_trainer.models import Adapter, adapter
from kinema_trainer.parallel import Team
from kinema_trainer.reports import Beat, Reporter
from kinema_trainer.runlog import RunLog
from kinema_trainer.shards import ShardIndex, read_empty_text
from kinema_trainer.weights import CONFIG, read_config

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
    team = parallel.join(here)
    settings = config.settings
    root = artifact_of(config)
    split = Split(rank=team.rank, world=team.world, batch=settings.batch_per_device, accumulate=settings.accumulate)
    loader = make_loader(config, workspace=workspace, split=split)
    found = resume_point(config, workspace=workspace, team=team)
    run = Run.prepare(config, workspace=workspace, found=found, here=here, team=team)
    log = None
    if team.leads:
        log = RunLog(workspace, config.run, step=run.position.step, attempt=config.attempt)
    meter = Meter(
        settings=settings,
        log=log,
        reporter=reporter,
        samples=split.step,
        flops=run.adapter.flops(config.model, loader.shape) * split.step / team.world,
        device=here,
    )
    trainer = Trainer(
        settings=settings,
        adapter=run.adapter,
        model=run.model,
        optimizer=run.optimizer,
        average=run.average,
        loader=loader,
        split=split,
        team=team,
        saver=saver.Saver(
            workspace=workspace,
            root=root,
            group=team.background,
            leads=team.leads,
            keep=settings.checkpoint.keep,
            manifest=manifest(config),
            saved=run.position,
            moved=watchdog.moved,
            before=log.upload if log is not None else None,
            on_complete=lambda position: trainer.covered(position),
        ),
        state=run.state,
        device=here.device,
        interrupted=interrupted,
        moved=watchdog.moved,
        on_step=meter.step,
        position=run.position,
        saving=watchdog.saving,
        ledger=ledger,
    )
    try:
        trainer.run()
    finally:
        loader.close()
        if log is not None:
            log.event("ended", step=trainer.position.step)
            log.close()
    team.meet()
    dist.destroy_process_group()


def make_loader(config: TrainConfig, *, workspace: Workspace, split: Split) -> Loader:
    """The encoded clips.

    Raises:
        StageError: the features artifact is not complete.
    """
    name = artifact_folder(Stage.FEATURES, config.features_key)
    if published(workspace, name) is None:
        raise StageError(Exit.STORAGE, f"{workspace.uri(name)} is not complete: run the features stage first")
    folder = workspace.fetch(name)
    return Loader(
        ShardIndex.open(folder),
        empty_text=read_empty_text(folder),
        text_length=config.model.text_length,
        objective=config.settings.objective,
        split=split,
        seed=config.settings.seed,
    )


def manifest(config: TrainConfig) -> Manifest:
    """What every checkpoint of the run says of itself."""
    return Manifest(
        stage=Stage.TRAIN,
        key=config.job.uid,
        job=f"{config.job.namespace}/{config.job.name}",
        details={"config": config_digest(config), "ema": config.settings.ema.enabled},
    )


def config_digest(config: TrainConfig) -> str:
    """A key of what a checkpoint depends on: going on under another one would mix two runs."""
    settings = config.settings
    return digest(
        {
            "model": config.model.transformer.wire(),
            "weights": config.convert_key,
            "features": config.features_key,
            "seed": settings.seed,
            "objective": settings.objective.wire(),
            "ema": settings.ema.enabled,
        }
    )


def resume_point(config: TrainConfig, *, workspace: Workspace, team: Team) -> checkpoints.Found | None:
    """The checkpoint to go on from, the same in every process; the leader clears away what cannot be used."""
    root = artifact_of(config)
    found: checkpoints.Found | None = None
    if team.leads:
        found = checkpoints.newest(workspace, root)
        checkpoints.remove_rest(workspace, root, found)
    found = team.tell(found)
    if found is not None and found.manifest.details["config"] != config_digest(config):
        raise StageError(
            Exit.USER,
            f"{workspace.uri(found.folder)} was written with another model, dataset, seed or objective: give the run"
            " another name, or delete the checkpoints",
        )
    return found


class Run:
    """What a process trains: model, optimizer and average, loaded."""

    def __init__(self, adapter: Adapter, model: nn.Module, adam: torch.optim.AdamW, average: optimizer.Average | None):
        self.adapter = adapter
        self.model = model
        self.optimizer = adam
        self.average = average
        self.position = Position()

    @classmethod
    def prepare(
        cls,
        config: TrainConfig,
        *,
        workspace: Workspace,
        found: checkpoints.Found | None,
        here: device.Device,
        team: Team,
    ) -> Run:
        """Build everything and load it from a checkpoint of the run, or from the converted weights."""
        settings = config.settings
        start = artifact_folder(Stage.CONVERT, config.convert_key)
        if published(workspace, start) is None:
            raise StageError(Exit.STORAGE, f"{workspace.uri(start)} is not complete: run the convert stage first")
        family = adapter(config.model)
        model = parallel.shard(
            family,
            read_config(workspace.fetch(start, CONFIG)),
            device=here,
            world=team.world,
            precision=settings.precision,
            recompute=settings.recompute,
        )
        if found is None:
            saver.load(workspace, start, parallel.weights(model))
        adam = optimizer.make_optimizer(model, settings.optimizer, fused=here.fused_optimizer)
        optimizer.create_moments(model, adam, step=found.position.step if found else 0)
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
            "model": parallel.weights(self.model),
            "optimizer": optimizer.moments(self.model, self.optimizer),
        }
        return state | ({"ema": dict(self.average.tensors)} if self.average is not None else {})


if __name__ == "__main__":
    sys.exit(main())
