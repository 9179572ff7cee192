# SPDX-License-Identifier: Apache-2.0
"""`kinema-stage STAGE --config FILE`: run one stage, leave a typed exit code and a termination message."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.names import CONFIG_PATH, Stage
from kinema_api.pipeline import SHARED_STAGES
from kinema_api.stage import AnyStageConfig, load_config
from kinema_stage import artifact, logs, pulse, signals, stacks, termination
from kinema_stage.context import Context, make_context
from kinema_stage.pace import Rule
from kinema_stage.watchdog import Stall, Watchdog

logger = logging.getLogger(__name__)

ENTRY_POINTS = "kinema.stages"
Run = Callable[[Context], Termination]
WATCH_THEIR_OWN = frozenset({Stage.TRAIN})
"""Stages that work in processes of their own, and watch each of them."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command."""
    options = _parse(arguments)
    logs.set_up(options.stage)
    interrupted = threading.Event()
    signals.listen(interrupted)
    end = execute(stage=Stage(options.stage), config=options.config, interrupted=interrupted)
    termination.write(end)
    level = logging.INFO if end.code == Exit.OK else logging.ERROR
    logger.log(level, "%s", end.message, extra={logs.FIELDS: {"exitCode": end.code, "reason": end.reason}})
    sys.exit(end.code)


def execute(*, stage: Stage, config: Path, interrupted: threading.Event) -> Termination:
    """Run a stage to its end, whatever that is."""
    context: Context | None = None
    end: Termination | None = None
    watchdog: Watchdog | None = None
    try:
        context = make_context(read_config(stage, config), interrupted=interrupted)
        watchdog = watch(context)
        with pulse.heard(context.progress.moved):
            end = _skip(context) or _named(implementation(stage)(context))
    except BaseException as error:
        if not isinstance(error, StageError):
            traceback.print_exc()
            logs.TAIL.add(traceback.format_exc())
        end = termination.failure(error, workspace=context.workspace.folder if context else None, stage=stage)
    finally:
        if watchdog is not None:
            watchdog.stop()
        if context is not None:
            context.progress.close(success=end is not None and end.code == Exit.OK)
    return end if context is None else _accounted(context, end)


def watch(context: Context) -> Watchdog | None:
    """End this process when its stage does not move; None where the stage does so itself."""
    if context.config.stage in WATCH_THEIR_OWN:
        return None

    def stall(found: Stall) -> None:
        path = stacks.path_of(context.config, rank=context.worker)
        address = stacks.store(context.workspace, path, stacks.own())
        end = termination.stalled(f"worker {context.worker} {found}", stacks=address)
        termination.write(_accounted(context, end))
        os._exit(Exit.STALLED)

    watchdog = Watchdog(rule=Rule.of(context.config), on_stall=stall)
    context.progress.watched(watchdog)
    watchdog.start()
    return watchdog


def _accounted(context: Context, end: Termination) -> Termination:
    """The end with what its time went to and, after a failure, the last lines of the log."""
    success = end.code == Exit.OK
    seconds = context.progress.account().spent.end(success=success)
    return end.model_copy(update={"seconds": seconds, "log_tail": "" if success else end.log_tail or logs.TAIL.text})


def read_config(stage: Stage, path: Path) -> AnyStageConfig:
    """The config in a file.

    Raises:
        StageError: it cannot be read, is not valid, or is another stage's.
    """
    try:
        config = load_config(path.read_bytes())
    except OSError as error:
        raise StageError(Exit.USER, f"cannot read the config {path}: {error.strerror}") from None
    except ValidationError as error:
        faults = "; ".join(f"{_where(fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise StageError(Exit.USER, f"the config {path} is not valid: {faults}") from None
    if config.stage is not stage:
        raise StageError(Exit.USER, f"the config {path} is for stage {config.stage}, not {stage}")
    return config


def implementation(stage: Stage) -> Run:
    """The function that runs a stage in this image.

    Raises:
        StageError: no installed package has it.
    """
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if stage.value not in found:
        have = ", ".join(sorted(found)) or "none"
        raise StageError(
            Exit.USER,
            f"this image cannot run stage {stage} (it has: {have}); give the operator the model family's image",
        )
    run: Run = found[stage.value].load()
    return run


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "config"


def _skip(context: Context) -> Termination | None:
    """The end of a shared stage whose artifact is there already."""
    if context.config.stage not in SHARED_STAGES:
        return None
    return artifact.existing(context.workspace, context.folder)


def _named(end: Termination) -> Termination:
    return end if end.reason else end.model_copy(update={"reason": "Succeeded"})


class _Parser(argparse.ArgumentParser):
    """Leaves with the typed code for wrong use."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USER, f"{self.prog}: {message}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="kinema-stage", description="Run one stage of a VideoTrainingJob.")
    parser.add_argument("stage", choices=[stage.value for stage in Stage], help="which stage")
    parser.add_argument("--config", type=Path, default=Path(CONFIG_PATH), help=f"its config (default {CONFIG_PATH})")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
