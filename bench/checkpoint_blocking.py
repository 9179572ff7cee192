# SPDX-License-Identifier: Apache-2.0
"""How long checkpoints hold up training: written while it goes on, against written while it waits.

Both sides are the same run of the train stage's own process: same model, weights, clips and steps, and a checkpoint of
weights, both moments and moving average every few steps. Counted is the time that the loop stands still for a
checkpoint: the call that starts it, the wait for the copy before the next update, and the wait for the one before where
it is still being written. The last checkpoint, for which every run waits, counts for neither side. Runs of both sides
alternate, each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Goal, Side, report
from bench.train_overhead import TOY, Setting
from kinema_api.catalogue import Entry
from kinema_api.settings import TrainSettings
from kinema_api.stage import TrainConfig, load_config
from kinema_stage.ledger import Ledger
from kinema_stage.pace import NEVER
from kinema_stage.watchdog import Watchdog
from kinema_stage.workspace import open_workspace
from kinema_trainer import launch, worker
from kinema_trainer.numbers import reports
from kinema_trainer.threads import cpu_threads

SPEC: Entry = TOY.model_copy(
    update={
        "transformer": TOY.transformer.model_copy(
            update={"hidden": 768, "heads": 12, "layers": 6, "ffn": 3072, "text_dim": 128}
        )
    }
)
"""56 million parameters: a checkpoint has 0.9 GB."""
EVERY, CHECKPOINTS = 4, 4
GOAL = Goal(at_most=0.10)


class Clocked(Watchdog):
    """Times every stop of the loop for a checkpoint, instead of looking for hangs."""

    def __init__(self) -> None:
        super().__init__(rule=NEVER, on_stall=lambda stall: None)
        self.stops: list[tuple[float, float]] = []
        """When each began and ended, by the monotonic clock."""

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint holds up the loop."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.stops.append((began, time.monotonic()))


def train(config: TrainConfig, *, folder: Path) -> dict[str, Any]:
    """Train in this process: seconds of each stop, but for the last checkpoint's, and of each step."""
    place = launch.Place(nodes=1, node=0, processes=1, address="127.0.0.1", port=0)
    os.environ.update(place.environment())
    clock = Clocked()
    workspace = open_workspace(config.workspace)
    worker.train(
        config,
        workspace=workspace,
        reporter=reports.Reporter(folder, rank=0),
        watchdog=clock,
        ledger=Ledger(),
        interrupted=threading.Event(),
    )
    lines = [json.loads(line) for line in workspace.read(f"{config.run}/metrics.jsonl").splitlines()]
    last = lines[-1]["time"]
    steps = [line["step_seconds"] for line in lines]
    found = sorted(Path(workspace.fetch(f"{config.run}/checkpoints")).rglob("*.distcp"))
    offset = time.time() - time.monotonic()
    # The last line is written before the last checkpoint begins.
    counted = [end - began for began, end in clock.stops if began + offset < last]
    return {"stops": counted, "steps": steps, "bytes": found[-1].stat().st_size}


def config_of(setting: Setting, *, asynchronous: bool, name: str, every: int, checkpoints: int) -> TrainConfig:
    """A run of one side."""
    settings = TrainSettings.model_validate(
        {
            **setting.settings.wire(),
            "batchPerDevice": 1,
            "steps": every * (checkpoints + 1),
            "ema": {"enabled": True},
            "checkpoint": {"everySteps": every, "keep": 1, "asynchronous": asynchronous},
        }
    )
    job = setting.train.job.model_copy(update={"name": name})
    return setting.train.model_copy(update={"settings": settings, "job": job})


def run(setting: Setting, config: TrainConfig) -> dict[str, Any]:
    """One run in a process of its own."""
    path = setting.root / f"{config.job.name}.json"
    path.write_text(config.model_dump_json(by_alias=True), encoding="utf-8")
    command = [sys.executable, "-m", "bench.checkpoint_blocking", "--run", str(path)]
    done = subprocess.run(
        command,
        env={**os.environ, **setting.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def side(what: str, runs: list[dict[str, Any]], *, checkpoints: int) -> Side:
    """A side's seconds a checkpoint: of the median run."""
    each = [sum(one["stops"]) / checkpoints for one in runs]
    raw = {
        "stopSeconds": [[round(stop, 4) for stop in one["stops"]] for one in runs],
        "stepSeconds": [one["steps"] for one in runs],
        "secondsPerCheckpointOfEachRun": [round(seconds, 4) for seconds in each],
        "checkpointBytes": runs[0]["bytes"],
    }
    return Side(what=what, value=statistics.median(each), unit="s a checkpoint", raw=raw)


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--every", type=int, default=EVERY, help="steps between two checkpoints")
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS, help="counted checkpoints of a run")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        config = load_config(options.run.read_bytes())
        assert isinstance(config, TrainConfig)
        with tempfile.TemporaryDirectory(prefix="kinema-bench-") as folder:
            print(json.dumps(train(config, folder=Path(folder))), flush=True)
        return 0
    threads = cpu_threads(1)
    with tempfile.TemporaryDirectory(prefix="kinema-bench-") as folder:
        setting = Setting(Path(folder), processes=1, threads=threads, spec=SPEC)
        setting.make()
        sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for number in range(options.rounds):
            for asynchronous in (True, False) if number % 2 == 0 else (False, True):
                name = f"bench-{'a' if asynchronous else 's'}{number}"
                config = config_of(
                    setting,
                    asynchronous=asynchronous,
                    name=name,
                    every=options.every,
                    checkpoints=options.checkpoints,
                )
                sides[asynchronous].append(run(setting, config))
    holds = report(
        "checkpoint_blocking",
        ours=side("asynchronous checkpoints", sides[True], checkpoints=options.checkpoints),
        reference=side("synchronous checkpoints", sides[False], checkpoints=options.checkpoints),
        goal=GOAL,
        settings={
            "threads": threads,
            "transformer": SPEC.transformer.model_dump(exclude={"parameters"}),
            "stepsBetween": options.every,
            "checkpoints": options.checkpoints,
            "rounds": options.rounds,
        },
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
