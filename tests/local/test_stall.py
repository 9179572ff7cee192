# SPDX-License-Identifier: Apache-2.0
"""A training process that is frozen is found, named and survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kinema_api.exits import Exit, Termination
from kinema_api.stage import TrainConfig

from tests.engine import make_engine, make_weights
from tests.waiting import until

STALL, STEPS = 10, 60


class Stage:
    """The train stage in a process of its own."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        path = folder / f"{config.attempt}.json"
        path.write_text(config.model_dump_json(by_alias=True))
        self.log = folder / f"{config.attempt}.termination"
        self.output = folder / f"{config.attempt}.log"
        settings = {"KINEMA_METRICS_PORT": "0", "KINEMA_TERMINATION_LOG": str(self.log), "OMP_NUM_THREADS": "1"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kinema_stage.main", "train", "--config", str(path)],
                env={**os.environ, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def worker(self, rank: int) -> psutil.Process:
        """The training process of a rank."""
        workers = psutil.Process(self.process.pid).children(recursive=True)
        return next(one for one in workers if one.environ().get("RANK") == str(rank))

    def end(self, seconds: float) -> Termination:
        """How it ended, within so many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end: {self.output.read_text()[-3000:]}")
        return Termination.model_validate_json(self.log.read_bytes())

    def kill(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.wait()


def test_a_frozen_rank_is_found_named_and_survived(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "workspace", make_weights(tmp_path / "weights"))
    config = engine.config(
        steps=STEPS, batchPerDevice=1, stallSeconds=STALL, checkpoint={"everySteps": 5, "keep": 2}
    ).model_copy(update={"devices_per_node": 2})
    metrics = engine.workspace.local(f"{config.run}/metrics.jsonl")
    first = Stage(tmp_path, config)
    try:
        until(
            "twelve steps are made",
            lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) >= 12,
            seconds=300,
        )
        frozen = first.worker(1)
        frozen.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        end = first.end(3 * STALL)
        assert time.monotonic() - began < 3 * STALL
    finally:
        first.kill()
    assert (first.process.returncode, end.code, end.reason) == (Exit.STALLED, Exit.STALLED, "Stalled")
    assert end.message.startswith("rank 1 (stopped by a signal) gave no sign of life for 1"), end.message
    assert "the limit is 10 s" in end.message
    assert end.stacks is not None
    assert end.stacks.endswith("stacks/train/attempt-1-rank-1.txt")
    stacks = engine.workspace.local(f"{config.run}/stacks/train")
    assert "state T (stopped by a signal)" in (stacks / "attempt-1-rank-1.txt").read_text()
    assert "most recent call first" in (stacks / "attempt-1-rank-0.txt").read_text()
    assert end.seconds["starting"] > 0
    assert end.seconds["lost"] >= STALL - 1
    assert not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE

    # The short limit was for the frozen one: a busy machine may well take as long for a step.
    patient = config.settings.model_copy(update={"stall_seconds": 300})
    second = Stage(tmp_path, config.model_copy(update={"attempt": 2, "settings": patient}))
    try:
        end = second.end(300)
    finally:
        second.kill()
    assert (end.code, end.counts.get("steps")) == (Exit.OK, STEPS), end.message
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, STEPS + 1))
    assert (end.seconds["lost"], end.log_tail) == (0, "")
