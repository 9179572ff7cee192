# SPDX-License-Identifier: Apache-2.0
"""Train: start this machine's training processes, pass their progress on, end as they end."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.stage import TrainConfig
from kinema_stage import stacks
from kinema_stage.context import Context
from kinema_stage.progress import Account
from kinema_trainer import launch
from kinema_trainer.checkpoints.folders import newest
from kinema_trainer.numbers.reports import Beat, Step
from kinema_trainer.numbers.wish import Wishes
from kinema_trainer.planning import fitting
from kinema_trainer.threads import cpu_threads

DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HCCL_DETERMINISTIC": "true",
    "LCCL_DETERMINISTIC": "1",
}
"""What NVIDIA's and Ascend's libraries have to be told before they start, to give the same bits every time."""

CAUSE_SECONDS = 10.0
"""How long a node that lost another one stays, so that the other one's end is known first."""


def run(context: Context) -> Termination:
    """Run the train stage."""
    config = context.config
    assert isinstance(config, TrainConfig)
    started = time.monotonic()
    wishes = Wishes(context.workspace, config.run)
    context.progress.wished = wishes.hear
    place = launch.Place.from_environment(os.environ, devices_per_node=config.devices_per_node)
    fitting.check(config, world=place.nodes * place.processes)
    with tempfile.TemporaryDirectory(prefix="kinema-train-") as name:
        path = Path(name) / "stage.json"
        path.write_text(config.model_dump_json(by_alias=True), encoding="utf-8")
        try:
            launch.run(
                place,
                config=path,
                environment=environment(processes=place.processes, deterministic=config.settings.deterministic),
                interrupted=context.interrupted,
                on_step=lambda step: report(context, step),
                on_beat=lambda beat: account(context, beat),
                keep=lambda rank, text: stacks.store(context.workspace, stacks.path_of(config, rank=rank), text),
                started=started,
                wishes=wishes.take if place.leads else lambda: None,
            )
        except StageError as error:
            outlast_the_cause(error, place, context.interrupted)
            raise
    if not place.leads:
        return Termination(code=Exit.OK, reason="Succeeded", message=f"node {place.node} of {place.nodes}")
    return _success(context, config)


def outlast_the_cause(error: StageError, place: launch.Place, interrupted: threading.Event) -> None:
    """Let the node whose failure was the cause of this one end first, and leave its word.

    Once a pod has failed, training-operator deletes those that still run, and with them what they could have said.
    """
    if error.code is Exit.COMMUNICATION and place.nodes > 1:
        interrupted.wait(CAUSE_SECONDS)


def environment(*, processes: int, deterministic: bool) -> dict[str, str]:
    """The environment of the training processes; threads are shared out unless the pod says how many."""
    chosen = {"OMP_NUM_THREADS": str(cpu_threads(processes)), "PYTHONUNBUFFERED": "1"}
    return {**chosen, **(DETERMINISTIC if deterministic else {}), **os.environ}


def report(context: Context, step: Step) -> None:
    """Pass a step on to log, metrics and server."""
    if not step.log:
        return
    context.progress.report(
        done=step.step,
        total=step.total,
        eta_seconds=step.eta_seconds,
        metrics={"step": step.step, "total_steps": step.total, **step.metrics},
        ranks={"memory_peak_bytes": step.memory},
    )


def account(context: Context, beat: Beat) -> None:
    """What the time of this machine's first process went to is what the stage's did."""
    found = Account(spent=beat.spent, stall_limit=beat.limit)
    context.progress.account = lambda: found


def _success(context: Context, config: TrainConfig) -> Termination:
    found = newest(context.workspace, context.folder)
    if found is None or found.position.step != config.settings.steps:
        raise StageError(Exit.INTERNAL, f"training ended but {context.folder} has no checkpoint of its last step")
    return Termination(
        code=Exit.OK,
        reason="Succeeded",
        message=f"{found.position.step} steps",
        artifact=context.workspace.uri(found.folder),
        digest=found.manifest.digest,
        counts={"steps": found.position.step, "samples": found.position.consumed},
    )
