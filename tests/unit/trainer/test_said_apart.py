# SPDX-License-Identifier: Apache-2.0
"""What is told with a step but stands in no line of the log, and steps that are told whatever the pace of lines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kinema_api.operations import Operations
from kinema_api.settings import TrainSettings
from kinema_stage import gauges
from kinema_trainer.checkpoints.folders import Position
from kinema_trainer.data.course import Pack, Step
from kinema_trainer.device import Device
from kinema_trainer.loop import Result
from kinema_trainer.numbers.counting import Count
from kinema_trainer.numbers.meter import Meter
from kinema_trainer.numbers.ranks import RollCall
from kinema_trainer.numbers.reports import Step as Report

pytestmark = pytest.mark.unit


class Log:
    """What lies in metrics.jsonl."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def event(self, name: str, **fields: Any) -> None:
        pass

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append(metrics)


def told(*validations: dict[str, float], planned: int | None = None) -> tuple[Log, list[Report]]:
    """A step for each validation, which is none where it is empty."""
    log: Any = Log()
    said: list[Report] = []
    reporter: Any = type("Reporter", (), {"step": staticmethod(said.append)})
    here = torch.device("cpu")
    meter = Meter(
        settings=TrainSettings(steps=100, log_every=10),
        log=log,
        reporter=reporter,
        count=lambda step: Count(Operations(model=1e12, hardware=1e12)),
        device=Device(device=here, backend="gloo", name="cpu"),
        ranks=RollCall(here, world=1),
        planned=planned,
    )
    plan = Step(start=0, consumed=1, passes=((Pack(slots=(), lengths=(50,), cost=1.0),),))
    for step, validation in enumerate(validations, start=1):
        position = Position(step=step, consumed=step)
        meter.step(Result(position=position, plan=plan, loss=0.5, gradient_norm=1.0, learning_rate=1e-4, seconds=2.0,
                          validation=validation))  # fmt: skip
    return log, said


def test_a_validation_is_told_at_the_step_that_it_followed() -> None:
    found = {"validation_loss": 0.3, "validation_loss_at_2500": 0.4}
    _, said = told({}, found, {})
    assert [step.log for step in said] == [False, True, False]
    assert found.items() <= said[1].metrics.items()
    assert all(gauges.place_of(name) is not None for name in said[1].metrics)


def test_the_plan_is_told_to_those_who_watch_and_not_written_with_each_step() -> None:
    log, said = told({}, {}, planned=12 << 30)
    assert [step.metrics["memory_planned_bytes"] for step in said] == [12 << 30] * 2
    assert not [line for line in log.lines if "memory_planned_bytes" in line]
    assert "memory_planned_bytes" not in told({})[1][0].metrics
