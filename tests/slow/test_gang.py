# SPDX-License-Identifier: Apache-2.0
"""Several training processes: they compute what one computes, and end well when one of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from kinema_api.catalogue import entry
from kinema_api.exits import Exit
from kinema_api.names import Stage
from kinema_trainer import tiny
from kinema_trainer.launch import free_port

from tests.slow.pipeline import MODEL, Pipeline, make_dataset
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, EVERY = 24, 6
VIDEO = {"frames": 9, "height": 32, "width": 32, "fps": 8, "clipsPerVideo": 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A job that is ready to train."""
    root = tmp_path_factory.mktemp("gang")
    tiny.make(root / "weights", spec=entry(MODEL))
    pipeline = Pipeline(root, make_dataset(root / "videos"), root / "weights", stages={"prepare": {"video": VIDEO}})
    pipeline.run(Stage.CHECK, Stage.PREPARE, Stage.FEATURES, Stage.CONVERT)
    return pipeline


def job(prepared: Pipeline, name: str, *, processes: int, batch: int, steps: int = STEPS, tensor: int = 1) -> Pipeline:
    """A job of its own over the prepared data."""
    train = {
        "steps": steps,
        "layout": {"tensor": tensor},
        "batchPerDevice": batch,
        "schedule": {"warmupSteps": 4},
        "checkpoint": {"everySteps": EVERY, "asynchronous": True},
        "ema": {"enabled": True, "decay": 0.9},
    }
    stages = {**prepared.stages, "train": train}
    pipeline = Pipeline(prepared.root, prepared.dataset, prepared.weights, stages, processes=processes, name=name)
    pipeline.keys = prepared.keys
    return pipeline


def losses(pipeline: Pipeline) -> list[float]:
    """The loss of every step, each once and in order."""
    lines = pipeline.lines()
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def finish(process: subprocess.Popen[bytes], *, seconds: float = 120) -> int:
    """The exit code of a stage."""
    try:
        return process.wait(seconds)
    finally:
        if process.poll() is None:
            process.kill()


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The training processes below a stage."""
    found: list[int] = []
    parents = {process.pid}
    while parents:
        children: set[int] = set()
        for entry_ in Path("/proc").iterdir():
            try:
                if entry_.name.isdigit() and int((entry_ / "stat").read_text().rsplit(")", 1)[1].split()[1]) in parents:
                    children.add(int(entry_.name))
                    if "kinema_trainer.worker" in (entry_ / "cmdline").read_text().split("\0"):
                        found.append(int(entry_.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        parents = children
    return [pid for pid in found if "torch.distributed.run" not in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.fixture(scope="module")
def whole(prepared: Pipeline) -> list[float]:
    """The losses of one process that nobody disturbs."""
    pipeline = job(prepared, "whole", processes=1, batch=2)
    pipeline.run(Stage.TRAIN)
    return losses(pipeline)


def test_two_processes_compute_what_one_computes(prepared: Pipeline, whole: list[float]) -> None:
    pair = job(prepared, "pair", processes=2, batch=1)
    end = pair.run(Stage.TRAIN)
    assert end.counts == {"steps": STEPS, "samples": 2 * STEPS}
    assert losses(pair) == pytest.approx(whole, rel=1e-3)
    assert losses(pair)[:3] == pytest.approx(whole[:3], rel=1e-5)


@pytest.mark.parametrize("each", [1, 2])
def test_two_nodes_meet_as_pods_of_a_pytorchjob_do(prepared: Pipeline, whole: list[float], each: int) -> None:
    # Of two processes each, a node has a matrix's two parts: either way two clips a step.
    nodes = job(prepared, f"nodes-{each}", processes=2 * each, batch=1, tensor=each)
    common = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": str(each),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(free_port()),
    }
    processes = [
        nodes.start(Stage.TRAIN, environment={**common, "PET_NODE_RANK": rank, "OMP_NUM_THREADS": "1"})
        for rank in ("0", "1")
    ]
    assert [finish(process) for process in processes] == [0, 0], nodes.log(Stage.TRAIN).read_text()[-4000:]
    assert losses(nodes) == pytest.approx(whole, rel=1e-3)


def test_a_stopped_gang_saves_and_goes_on_with_another_size(prepared: Pipeline, whole: list[float]) -> None:
    pair = job(prepared, "stopped", processes=2, batch=1)
    process = pair.start(Stage.TRAIN)
    until("two steps are made", lambda: len(pair.lines()) >= 2, seconds=120)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == Exit.INTERRUPTED
    stopped = len(pair.lines())
    assert pair.end(Stage.TRAIN).message == f"told to stop: saved step {stopped} of {STEPS}"
    alone = job(prepared, "stopped", processes=1, batch=2)
    alone.run(Stage.TRAIN)
    assert losses(alone) == pytest.approx(whole, rel=1e-3)
    told = [line for line in alone.lines("events.jsonl") if line["event"] in ("started", "resumed", "ended")]
    events = [(line["event"], line["step"], line.get("repeats")) for line in told]
    assert events == [("started", 0, 0), ("ended", stopped, None), ("resumed", stopped, 0), ("ended", STEPS, None)]


@pytest.mark.parametrize("victim", ["stage", "worker"])
def test_a_killed_gang_loses_no_more_than_an_interval(prepared: Pipeline, whole: list[float], victim: str) -> None:
    pair = job(prepared, f"killed-{victim}", processes=2, batch=1)
    process = pair.start(Stage.TRAIN)
    published = pair.workspace.local(f"{pair.config(Stage.CHECK).run}/checkpoints/step-{EVERY:08d}/_SUCCESS.json")
    until("the checkpoint is published", published.exists, seconds=120)
    below = workers(process)
    assert len(below) == 2
    os.kill(process.pid if victim == "stage" else below[1], signal.SIGKILL)
    code = finish(process)
    if victim == "stage":
        assert code == -signal.SIGKILL
        until("its processes are gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), seconds=20)
    else:
        assert Exit(code).retryable, pair.log(Stage.TRAIN).read_text()[-4000:]
    pair.run(Stage.TRAIN)
    assert losses(pair) == pytest.approx(whole, rel=1e-3)
    (resumed,) = (line for line in pair.lines("events.jsonl") if line["event"] == "resumed")
    assert resumed["step"] >= EVERY
    assert resumed["repeats"] <= EVERY
