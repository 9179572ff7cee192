# SPDX-License-Identifier: Apache-2.0
"""A run over clips of mixed sizes: what is trained on, what a checkpoint keeps of it, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from kinema_api.exits import Exit, StageError
from kinema_api.names import Stage
from kinema_api.packing import Packing
from kinema_api.stage import TrainConfig, artifact_of
from kinema_stage.artifact import Manifest, publish
from kinema_trainer.checkpoints import folders
from kinema_trainer.data import feed
from kinema_trainer.data.shards import EMPTY_TEXT, Sample, Sidecar, dump_tensor, shard_name, sidecar_name, write_shard
from kinema_trainer.planning.calibration import Calibration, passes

from tests.engine import Engine, Train
from tests.stages.train.test_training import before_pass

pytestmark = pytest.mark.unit

MIXED = "mixed"
SHAPES = [(16, 1, 4, 4), (16, 2, 4, 4), (16, 2, 8, 4), (16, 3, 8, 8)]
"""4, 8, 16 and 48 tokens."""
PACKED: dict[str, Any] = {"packing": {"tokens": 60}, "steps": 8, "checkpoint": {"everySteps": 4, "keep": 9}}


@pytest.fixture
def mixed(engine: Engine) -> Engine:
    """An engine with features of several shapes."""
    stream = torch.Generator().manual_seed(5)
    name = f"artifacts/features/{MIXED}"
    folder = engine.workspace.local(name)
    folder.mkdir(parents=True)
    clips = [
        Sample(
            key=f"clip-{index:02d}",
            latents=torch.randn(SHAPES[index % 4], generator=stream),
            text=torch.randn((1 + index % 5, 8), generator=stream),
        )
        for index in range(13)
    ]
    path = folder / shard_name(0)
    records = write_shard(path, clips)
    keys = tuple(clip.key for clip in clips)
    sidecar = Sidecar(shard=path.name, size=1, holder="t", clips=keys, encoded=keys, reused=(), records=records)
    (folder / sidecar_name(path.name)).write_text(sidecar.model_dump_json(by_alias=True))
    (folder / EMPTY_TEXT).write_bytes(dump_tensor(torch.zeros(1, 8)))
    publish(engine.workspace, name, Manifest(stage=Stage.FEATURES, key=MIXED, job="local/test"))
    return engine


def config(engine: Engine, name: str = "run", **settings: Any) -> TrainConfig:
    made = engine.config(name, **{**PACKED, **settings})
    return made.model_copy(update={"features_key": MIXED})


def lines(engine: Engine, config: TrainConfig, file: str) -> list[dict[str, Any]]:
    text = engine.workspace.read(f"{config.run}/{file}").decode()
    return [json.loads(line) for line in text.splitlines()]


def test_packs_are_trained_on_as_planned_and_the_cost_is_learnt(mixed: Engine, train: Train) -> None:
    one = config(mixed, steps=14)
    train(mixed, one)
    steps = lines(mixed, one, "metrics.jsonl")
    features = feed.Features.open(one, workspace=mixed.workspace)
    course, at = feed.course_of(one, features.samples, frozen=None), 0
    for step in steps:
        plan = course.step(at, passes=1, width=1)
        assert (step["samples"], step["tokens"], step["padding"]) == (plan.consumed, plan.tokens, 0)
        assert plan.tokens <= 60
        at = plan.consumed
    assert len({step["tokens"] for step in steps}) > 1
    found = folders.newest(mixed.workspace, artifact_of(one))
    assert found is not None
    assert found.position.consumed == at
    assert found.manifest.details[feed.COURSE] == course.frozen()
    costs = [event for event in lines(mixed, one, "events.jsonl") if event["event"] == "cost"]
    assert costs[-1]["steps"] == 12
    assert all(costs[-1][term] >= 0 for term in ("quadratic", "linear", "clip"))


def test_a_resumed_run_gives_the_losses_of_an_undisturbed_one(mixed: Engine, train: Train) -> None:
    whole, broken = config(mixed, "whole"), config(mixed, "broken")
    train(mixed, whole)
    train(mixed, broken)
    workspace, root = mixed.workspace, artifact_of(broken)
    workspace.delete(folders.folder_of(root, 8))
    train(mixed, broken)
    assert [step["loss"] for step in lines(mixed, broken, "metrics.jsonl")] == [
        step["loss"] for step in lines(mixed, whole, "metrics.jsonl")
    ]


def test_the_first_checkpoint_fixes_cost_and_packs(mixed: Engine, train: Train) -> None:
    first = config(mixed, steps=4)
    train(mixed, first)
    other: dict[str, Any] = {"packing": {"tokens": 60, "cost": {"quadratic": 5, "linear": 1}}}
    features = feed.Features.open(first, workspace=mixed.workspace)
    found = folders.newest(mixed.workspace, artifact_of(first))
    assert found is not None
    frozen = found.manifest.details[feed.COURSE]
    course = feed.course_of(config(mixed, "run", **other), features.samples, frozen=frozen)
    assert course.frozen() == frozen
    with pytest.raises(StageError, match=r"another value of stages.train.packing.tokens \(60, now 64\)") as caught:
        train(mixed, config(mixed, packing={"tokens": 64}))
    assert caught.value.code is Exit.USER


def test_a_clip_that_no_pack_holds_is_refused(mixed: Engine, train: Train) -> None:
    with pytest.raises(StageError, match=r"packing.tokens: clip clip-03 has 48 tokens") as caught:
        train(mixed, config(mixed, packing={"tokens": 47}))
    assert caught.value.code is Exit.USER


def test_batches_of_mixed_sizes_hold_one_size_each(mixed: Engine, train: Train) -> None:
    one = config(mixed, packing=None, batchPerDevice=2, steps=8)
    train(mixed, one)
    steps = lines(mixed, one, "metrics.jsonl")
    # Two full batches of the first size; of each other one a full batch, and a clip that is left over.
    assert sorted(step["tokens"] for step in steps) == [8, 8, 8, 16, 16, 32, 48, 96]
    assert steps[-1]["samples"] == 13


def test_a_measured_cost_is_kept_before_anything_is_packed_by_it(
    mixed: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config(mixed, packing={"tokens": 60, "measured": True})
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        before_pass(patch, lambda trainer, micro: trainer.position.step < 2 or 1 // 0)
        train(mixed, one)
    assert folders.newest(mixed.workspace, artifact_of(one)) is None
    cost = json.loads(mixed.workspace.read(f"{one.run}/cost.json"))
    assert cost["quadratic"] > 0 or cost["linear"] > 0 or cost["clip"] > 0
    # The next attempt measures nothing, and packs by the same cost.
    monkeypatch.setattr(Calibration, "_measured", lambda *_: pytest.fail("it measures again"))
    train(mixed, one)
    found = folders.newest(mixed.workspace, artifact_of(one))
    assert found is not None and found.manifest.details[feed.COURSE]["cost"] == cost
    # Nothing of the measurement is left in what is trained.
    given = config(mixed, "given", packing={"tokens": 60, "cost": cost})
    train(mixed, given)
    assert [step["loss"] for step in lines(mixed, one, "metrics.jsonl")] == [
        step["loss"] for step in lines(mixed, given, "metrics.jsonl")
    ]


def test_what_is_measured_fits_into_a_pack() -> None:
    short, middle, long = SHAPES[0], SHAPES[2], SHAPES[3]
    patch = (1, 2, 2)
    assert passes(SHAPES, Packing(tokens=60), patch) == [(short,), (short, short), (middle,), (long,)]
    assert passes([long], Packing(tokens=60), patch) == [(long,)]
    assert passes([long], Packing(tokens=96), patch) == [(long,), (long, long)]
