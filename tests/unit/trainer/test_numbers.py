# SPDX-License-Identifier: Apache-2.0
"""The numbers of a step: what they are made of, and that each is said to whoever looks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema_api.catalogue import entry
from kinema_api.operations import Operations
from kinema_api.settings import TrainSettings
from kinema_stage import gauges
from kinema_stage.ledger import Spent
from kinema_trainer.checkpoints.folders import Position
from kinema_trainer.data.course import Pack, Slot, Step
from kinema_trainer.device import Device
from kinema_trainer.loop import Result
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.numbers import counting
from kinema_trainer.numbers.counting import Count, operations
from kinema_trainer.numbers.meter import Meter
from kinema_trainer.numbers.ranks import Straggler
from kinema_trainer.numbers.reports import Step as Report
from kinema_trainer.numbers.wish import Wish, lay
from kinema_trainer.timing import Phase

from tests.engine import Engine

pytestmark = pytest.mark.unit

SHAPE = (16, 21, 60, 104)
TERA = 1e12


def counted(**train: Any) -> Operations:
    return operations(ADAPTER, entry("wan2.1-t2v-1.3b"), TrainSettings.model_validate(train), SHAPE)


def test_what_is_computed_again_is_the_hardwares_alone() -> None:
    none = counted()
    assert none.model == none.hardware == pytest.approx(849.0 * TERA, rel=1e-3)
    full = counted(recompute={"mode": "full"})
    assert full.model == none.model
    # A forward pass of the blocks more: a third, but for the ends.
    assert full.hardware == pytest.approx(none.model * 4 / 3, rel=1e-2)
    half = counted(recompute={"mode": "interval", "every": 2})
    assert half.hardware - none.model == pytest.approx((full.hardware - none.model) / 2)
    attention = counted(recompute={"mode": "selective", "save": ["attention"]})
    # 593.5 of 849.0 are between the video's own tokens; the caption's are kept too.
    assert full.hardware - attention.hardware == pytest.approx((593.5 + 9.28) / 3 * TERA, rel=1e-3)


def test_low_rank_training_is_no_three_times_a_forward_pass() -> None:
    # 849.0 less a product of each frozen matrix: 246 of it are matrices, in three passes.
    found = counted(lora={"enabled": True})
    assert found.model == pytest.approx(767 * TERA, rel=0.01)


def test_fillers_are_padding_and_no_work_of_the_model() -> None:
    slots = (Slot(sample=0, position=0), Slot(sample=1, position=1, weight=0.0))
    step = Step(start=0, consumed=2, passes=((Pack(slots=slots, lengths=(20, 10), cost=1.0),),))
    config: Any = type("Config", (), {"model": entry("wan2.1-t2v-1.3b"), "settings": TrainSettings()})
    small = (16, 7, 60, 104)
    found = Count.of(step, adapter=ADAPTER, config=config, shapes=[SHAPE, small], world=2)
    assert found.padding == pytest.approx(7 / 28)
    assert found.operations.model == pytest.approx(counted().model / 2)


def test_thousands_of_clips_of_few_shapes_are_counted_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = tuple(Slot(sample=index, position=index) for index in range(3000))
    step = Step(start=0, consumed=3000, passes=((Pack(slots=slots, lengths=(1,) * 3000, cost=1.0),),))
    config: Any = type("Config", (), {"model": entry("wan2.1-t2v-1.3b"), "settings": TrainSettings()})
    asked: list[object] = []
    original = counting.operations

    def counted_once(*given: Any) -> Operations:
        asked.append(given)
        return original(*given)

    monkeypatch.setattr(counting, "operations", counted_once)
    found = Count.of(step, adapter=ADAPTER, config=config, shapes=[SHAPE, SHAPE, (16, 7, 60, 104)] * 1000, world=1)
    assert len(asked) == 2
    small = operations(ADAPTER, config.model, config.settings, (16, 7, 60, 104))
    assert found.operations.model == pytest.approx(2000 * counted().model + 1000 * small.model)


class Log:
    """What the leader writes."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.steps: list[dict[str, float]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append(metrics)


class Ranks:
    """A roll call whose result is known, at every step."""

    def __init__(self, *found: Straggler | None) -> None:
        self._found = list(found)
        self.table = {"data": [0.1, 0.4], "probe": [1e-3, 1e-3]} if found else {}
        self.memory = [1e9, 2e9] if found else []

    def due(self, step: int) -> bool:
        return bool(self.table)

    def step(self, step: int, phases: Any, *, seconds: float, memory: Any) -> Straggler | None:
        return self._found.pop(0) if self._found else None


def metered(*found: Straggler | None, name: str = "cpu", steps: int = 1, **train: Any) -> tuple[Log, list[Report]]:
    log: Any = Log()
    said: list[Report] = []
    reporter: Any = type("Reporter", (), {"step": staticmethod(said.append)})
    ranks: Any = Ranks(*found)
    meter = Meter(
        settings=TrainSettings.model_validate({"steps": 100, **train}),
        log=log,
        reporter=reporter,
        count=lambda step: Count(Operations(model=8e12, hardware=10e12), padding=0.25),
        device=Device(device=torch.device("cpu"), backend="gloo", name=name),
        ranks=ranks,
    )
    plan = Step(start=0, consumed=2, passes=((Pack(slots=(), lengths=(50,), cost=1.0),),))
    for step in range(1, steps + 1):
        meter.step(
            Result(
                position=Position(step=step, consumed=2 * step),
                plan=plan,
                loss=0.5,
                gradient_norm=1.0,
                learning_rate=1e-4,
                seconds=2.0,
                phases={"data": 0.5, "forward": 0.4, "backward": 0.8, "optimizer": 0.2, "checkpoint": 0.0},
            )
        )
    return log, said


def test_utilisation_is_explained_once_and_told_apart_from_the_hardwares(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log, _ = metered(name="NVIDIA H100 80GB HBM3", steps=3)
    assert log.steps[0]["mfu"] == pytest.approx(4e12 / 989.4e12, rel=1e-5)
    assert log.steps[0]["hfu"] == pytest.approx(5e12 / 989.4e12, rel=1e-5)
    (said,) = [message for message in caplog.messages if "MFU" in message]
    for part in ("8 TFLOP of the model", "10 with what is computed again", "989.4 TFLOP/s", "NVIDIA H100 80GB HBM3"):
        assert part in said
    assert [name for name, _ in log.events] == ["operations"]


@pytest.mark.parametrize(("name", "train"), [("cpu", {}), ("NVIDIA H100 80GB HBM3", {"precision": "fp32"})])
def test_without_a_known_peak_there_is_no_utilisation(
    name: str, train: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log, _ = metered(name=name, **train)
    assert not {"mfu", "hfu"} & set(log.steps[0])
    assert log.steps[0]["tflops_per_second"] == 4.0
    assert "no MFU" in caplog.text


def test_a_straggler_is_named_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    late = Straggler(rank=1, node="gpu-7", column="data", seconds=0.4, median=0.1)
    log, said = metered(None, late, late, None, steps=4)
    assert [name for name, _ in log.events] == ["operations", "straggler", "no_straggler"]
    assert (log.events[1][1]["rank"], log.events[1][1]["node"]) == (1, "gpu-7")
    assert [step["straggler_rank"] for step in log.steps] == [-1, 1, 1, -1]
    assert {step.memory for step in said} == {(1e9, 2e9)}
    assert [step.metrics.get("straggler") for step in said] == [None, "rank 1 on gpu-7", "rank 1 on gpu-7", None]
    assert log.steps[0]["ranks_data_seconds_max"] == 0.4
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["held up by rank 1 on gpu-7: it waits for data 0.4 s, the middle one 0.1 s"]


def test_a_run_tells_where_its_steps_time_went_and_obeys_a_wish(
    engine: Engine, train: Callable[..., None], tmp_path: Path
) -> None:
    lay(tmp_path / "reports", Wish.parse("steps=2"))
    config = engine.config()
    train(engine, config)
    folder = engine.workspace.local(config.run)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    for line in lines:
        parts = [line[f"{phase}_seconds"] for phase in ("data", "forward", "backward", "optimizer")]
        assert all(part > 0 for part in parts)
        assert sum(parts) + line["wait_seconds"] <= line["step_seconds"]
        assert line["memory_peak_bytes"] > 1 << 20 and line["padding"] == 0
        assert not {"mfu", "straggler_rank"} & set(line)
    told = sum(line[f"{phase.value}_seconds"] for line in lines for phase in Phase if phase is not Phase.CHECKPOINT)
    assert told > 0.8 * sum(line["step_seconds"] for line in lines), "nearly nothing of a step has no name"
    # A checkpoint counts in the step that follows it.
    assert lines[2]["checkpoint_seconds"] > 0
    (found,) = (folder / "profiles").iterdir()
    assert found.name.startswith("step-00000002-")
    assert {path.name for path in found.iterdir()} >= {"rank-0.trace.json.gz", "rank-0.operations.txt", "rank-0.json"}


def test_every_number_of_a_step_has_a_series_of_its_own() -> None:
    late = Straggler(rank=1, node="gpu-7", column="data", seconds=0.4, median=0.1)
    log, _ = metered(late, name="NVIDIA H100 80GB HBM3")
    assert {"mfu", "straggler_rank", "ranks_data_seconds_max"} <= set(log.steps[0])
    assert set(log.steps[0]) <= set(gauges.PLACES)
    assert set(Spent().metrics()) <= set(gauges.PLACES)
    assert {f"{phase.value}_seconds" for phase in Phase} <= set(gauges.PLACES)
