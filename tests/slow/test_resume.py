# SPDX-License-Identifier: Apache-2.0
"""Training that is killed by SIGKILL at random steps is the training that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from kinema_api.catalogue import entry
from kinema_api.names import Stage
from kinema_trainer import tiny
from kinema_trainer.checkpoints import dcp
from kinema_trainer.checkpoints.folders import newest
from kinema_trainer.checkpoints.saver import plain_errors

from tests.slow.pipeline import MODEL, Pipeline, make_dataset
from tests.slow.test_gang import VIDEO, finish, workers
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, EVERY, SAMPLES = 14, 3, 4
"""Steps of a run, steps between two checkpoints, clips of a step."""
SEED = 20


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A job that is ready to train."""
    root = tmp_path_factory.mktemp("resume")
    tiny.make(root / "weights", spec=entry(MODEL))
    pipeline = Pipeline(root, make_dataset(root / "videos"), root / "weights", stages={"prepare": {"video": VIDEO}})
    pipeline.run(Stage.CHECK, Stage.PREPARE, Stage.FEATURES, Stage.CONVERT)
    return pipeline


def job(prepared: Pipeline, name: str, *, processes: int, layout: dict[str, Any], **settings: Any) -> Pipeline:
    """A job of its own over the prepared data, of as many clips a step whatever the layout."""
    shared = layout.get("tensor", 1) * layout.get("ulysses", 1) * layout.get("ring", 1)
    train = {
        "steps": STEPS,
        "batchPerDevice": 1,
        "accumulate": SAMPLES * shared // processes,
        "layout": layout,
        "optimizer": {"learningRate": 1e-4},
        "schedule": {"kind": "wsd", "warmupSteps": 3, "decaySteps": 5},
        "checkpoint": {"everySteps": EVERY},
        "ema": {"enabled": True, "decay": 0.9},
        **settings,
    }
    pipeline = Pipeline(
        prepared.root, prepared.dataset, prepared.weights, {**prepared.stages, "train": train}, processes, name
    )
    pipeline.keys = prepared.keys
    return pipeline


def kill_after(pipeline: Pipeline, step: int) -> int:
    """Start the stage, and kill it and its processes as soon as a step is reported; the last step that was."""
    process = pipeline.start(Stage.TRAIN, environment={"OMP_NUM_THREADS": "1"})
    try:
        until(
            f"step {step} is reported",
            lambda: process.poll() is not None or len(pipeline.lines()) >= step,
            seconds=300,
            poll=0.02,
        )
        assert process.poll() is None, pipeline.log(Stage.TRAIN).read_text()[-4000:]
    finally:
        below = workers(process)
        for pid in (process.pid, *below):
            os.kill(pid, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    until("its processes are gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), seconds=30)
    return len(pipeline.lines())


def whole_run(prepared: Pipeline, name: str, **kind: Any) -> Pipeline:
    """A run that nobody disturbs."""
    pipeline = job(prepared, name, **kind)
    process = pipeline.start(Stage.TRAIN, environment={"OMP_NUM_THREADS": "1"})
    assert finish(process, seconds=400) == 0, pipeline.log(Stage.TRAIN).read_text()[-4000:]
    return pipeline


def end(pipeline: Pipeline) -> None:
    """Run the rest."""
    process = pipeline.start(Stage.TRAIN, environment={"OMP_NUM_THREADS": "1"})
    assert finish(process, seconds=400) == 0, pipeline.log(Stage.TRAIN).read_text()[-4000:]


def numbers(pipeline: Pipeline) -> list[tuple[float, float, float]]:
    """Loss, gradient norm and learning rate of every step, each once and in order."""
    lines = pipeline.lines()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [(line["loss"], line["grad_norm"], line["learning_rate"]) for line in lines]


def state(pipeline: Pipeline) -> dict[str, Tensor]:
    """Every tensor of the last checkpoint: weights, moments, moving average."""
    found = newest(pipeline.workspace, f"{pipeline.config(Stage.CHECK).run}/checkpoints")
    assert found is not None
    assert (found.position.step, found.position.consumed) == (STEPS, STEPS * SAMPLES)
    reader = dcp.reader(pipeline.workspace, found.folder)
    entries = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(one.size, dtype=one.properties.dtype)
        for name, one in entries.items()
        if isinstance(one, TensorStorageMetadata)
    }
    assert {name.split(".")[0] for name in tensors} == {"model", "optimizer", "ema"}
    with plain_errors():
        load(dict(tensors), storage_reader=reader, no_dist=True)
    return tensors


SAME: dict[str, dict[str, Any]] = {
    "one process": {"processes": 1, "layout": {}},
    "FSDP2": {"processes": 2, "layout": {"shard": 2}},
    "TP": {"processes": 2, "layout": {"tensor": 2}},
    "LoRA in copies": {
        "processes": 2,
        "layout": {"replicate": 2, "shard": 1},
        "lora": {"enabled": True, "rank": 4, "dropout": 0.1},
    },
}


@pytest.mark.parametrize("name", SAME)
def test_in_the_same_layout_every_bit_is_the_same(prepared: Pipeline, name: str) -> None:
    slug = name.lower().replace(" ", "-")
    whole = whole_run(prepared, f"whole-{slug}", **SAME[name])
    killed = job(prepared, f"killed-{slug}", **SAME[name])
    chance = random.Random(f"{SEED} {name}")
    for step in sorted(chance.sample(range(1, STEPS), 2)):
        assert kill_after(killed, step) < STEPS
    end(killed)
    assert numbers(killed) == numbers(whole)
    wanted, found = state(whole), state(killed)
    assert wanted.keys() == found.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


OTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2 to 1": ({"processes": 2, "layout": {"shard": 2}}, {"processes": 1, "layout": {}}),
    "1 to 4": ({"processes": 1, "layout": {}}, {"processes": 4, "layout": {"shard": 4}}),
    "FSDP2 to TP": ({"processes": 2, "layout": {"shard": 2}}, {"processes": 2, "layout": {"tensor": 2}}),
    "TP to copies": (
        {"processes": 2, "layout": {"tensor": 2}},
        {"processes": 2, "layout": {"replicate": 2, "shard": 1}},
    ),
}


@pytest.fixture(scope="module")
def alone(prepared: Pipeline) -> Pipeline:
    """One process that nobody disturbs."""
    return whole_run(prepared, "alone", processes=1, layout={})


@pytest.mark.parametrize("name", OTHER)
def test_in_another_layout_it_goes_on_as_it_would_have(prepared: Pipeline, alone: Pipeline, name: str) -> None:
    before, after = OTHER[name]
    slug = name.lower().replace(" ", "-")
    killed = job(prepared, slug, **before)
    step = random.Random(f"{SEED} {name}").randint(EVERY + 1, STEPS - 2)
    assert kill_after(killed, step) < STEPS
    end(job(prepared, slug, **after))
    for found, wanted in zip(numbers(killed), numbers(alone), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    wanted_state, found_state = state(alone), state(killed)
    assert wanted_state.keys() == found_state.keys()
    for part in ("model", "ema", "optimizer.exp_avg.", "optimizer.exp_avg_sq."):
        names = [key for key in wanted_state if key.startswith(part)]
        difference = sum(float((found_state[key] - wanted_state[key]).square().sum()) for key in names)
        size = sum(float(wanted_state[key].square().sum()) for key in names)
        assert (difference / size) ** 0.5 < 1e-5, part
