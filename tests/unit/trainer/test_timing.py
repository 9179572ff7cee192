# SPDX-License-Identifier: Apache-2.0
"""What the time of a step goes to: by the host's clock on a CPU, by events that nobody waits for on an accelerator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kinema_trainer.timing import Phase, Stopwatch

pytestmark = pytest.mark.unit


def test_a_cpu_counts_each_phase_and_forgets_what_was_taken() -> None:
    ticks = iter(range(100))
    watch = Stopwatch(torch.device("cpu"), clock=lambda: float(next(ticks)))
    for _ in range(2):
        with watch.during(Phase.DATA):
            pass
        with watch.during(Phase.FORWARD):
            next(ticks)
    assert watch.take() == {
        "data": 2.0,
        "wait": 0.0,
        "forward": 4.0,
        "backward": 0.0,
        "optimizer": 0.0,
        "checkpoint": 0.0,
    }
    assert set(watch.take().values()) == {0.0}


def test_a_phase_that_fails_counts_too() -> None:
    ticks = iter(range(100))
    watch = Stopwatch(torch.device("cpu"), clock=lambda: float(next(ticks)))
    with pytest.raises(ValueError, match="no"), watch.during(Phase.BACKWARD):
        raise ValueError("no")
    assert watch.take()["backward"] == 1.0


class Stream:
    """A device that is behind the host: it passes events when it is told to."""

    def __init__(self) -> None:
        self.made = 0
        self.waiting: list[Event] = []
        self.time = 0.0

    def passes(self, count: int, seconds: float = 1.0) -> None:
        for event in self.waiting[:count]:
            self.time += seconds
            event.at = self.time
        del self.waiting[:count]


class Event:
    stream: Stream

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.stream.made += 1
        self.at: float | None = None

    def record(self) -> None:
        self.at = None
        self.stream.waiting.append(self)

    def query(self) -> bool:
        return self.at is not None

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None and end.at is not None
        return 1e3 * (end.at - self.at)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    Event.stream = Stream()
    module: Any = SimpleNamespace(Event=Event)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return Event.stream


def test_an_accelerator_is_not_waited_for(stream: Stream) -> None:
    watch = Stopwatch(torch.device("cuda"))
    for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER):
        with watch.during(phase):
            pass
    stream.passes(5)
    first = watch.take()
    assert (first["forward"], first["backward"], first["optimizer"]) == (1.0, 1.0, 0.0)
    stream.passes(1)
    assert watch.take()["optimizer"] == 1.0
    made = stream.made
    with watch.during(Phase.FORWARD):
        pass
    assert stream.made == made, "events are used again"


def test_the_wait_for_data_is_the_hosts(stream: Stream) -> None:
    ticks = iter(range(100))
    watch = Stopwatch(torch.device("cuda"), clock=lambda: float(next(ticks)))
    with watch.during(Phase.DATA):
        pass
    assert watch.take()["data"] == 1.0 and not stream.made
