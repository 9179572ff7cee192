# SPDX-License-Identifier: Apache-2.0
"""What the seconds of an attempt went to."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_stage.ledger import Activity, Ledger, Spent
from kinema_stage.memory import Memory


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_each_second_is_counted_once() -> None:
    clock = Clock()
    ledger = Ledger(started=90.0, clock=clock)
    clock.now = 105.0
    ledger.switch(Activity.PRODUCTIVE)
    clock.now = 110.0
    with ledger.during(Activity.DATA):
        clock.now = 112.0
    clock.now = 120.0
    ledger.saved(ledger.spent().productive)
    with ledger.during(Activity.CHECKPOINT):
        clock.now = 121.0
        assert ledger.spent() == Spent(starting=15, productive=13, data=2, checkpoint=1, saved=13)
    clock.now = 125.0
    spent = ledger.spent()
    assert spent == Spent(starting=15, productive=17, data=2, checkpoint=1, saved=13)
    assert spent.starting + spent.productive + spent.data + spent.checkpoint == clock.now - 90.0


def test_an_activity_ends_with_its_error() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.switch(Activity.PRODUCTIVE)
    with pytest.raises(ZeroDivisionError), ledger.during(Activity.DATA):
        clock.now += 2
        raise ZeroDivisionError
    clock.now += 3
    assert ledger.spent() == Spent(productive=3, data=2)


SPENT = Spent(starting=15.2, productive=17.4, data=2, checkpoint=1, saved=13)


def test_success_keeps_all_work_and_failure_what_is_saved() -> None:
    common = {"starting": 15, "data": 2, "checkpoint": 1}
    assert SPENT.end(success=True) == {**common, "productive": 17, "lost": 0}
    assert SPENT.end(success=False) == {**common, "productive": 13, "lost": 4}
    assert Spent(productive=2, saved=3).end(success=False)["lost"] == 0


def test_progress_carries_the_sums_by_name() -> None:
    assert SPENT.metrics() == {
        "seconds_starting": 15.2,
        "seconds_productive": 17.4,
        "seconds_data": 2,
        "seconds_checkpoint": 1,
        "seconds_saved": 13,
    }


def test_memory_is_what_the_control_group_says(tmp_path: Path) -> None:
    assert Memory.read(tmp_path) == Memory(current=None, peak=None, limit=None, kills=0)
    for name, text in {
        "memory.current": f"{1 << 30}\n",
        "memory.peak": f"{3 << 29}\n",
        "memory.max": f"{1 << 31}\n",
        "memory.events": "low 0\noom 3\noom_kill 2\n",
    }.items():
        (tmp_path / name).write_text(text)
    found = Memory.read(tmp_path)
    assert (found.kills, str(found)) == (2, "in use 1.00 GiB, peak 1.50 GiB, limit 2.00 GiB")
    (tmp_path / "memory.max").write_text("max\n")
    assert Memory.read(tmp_path).limit is None


def test_memory_is_read_from_the_first_version_of_control_groups_too(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    for name, text in {
        "memory.usage_in_bytes": f"{1 << 30}\n",
        "memory.max_usage_in_bytes": f"{3 << 29}\n",
        "memory.limit_in_bytes": f"{1 << 31}\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    }.items():
        (folder / name).write_text(text)
    found = Memory.read(tmp_path)
    assert (found.kills, str(found)) == (2, "in use 1.00 GiB, peak 1.50 GiB, limit 2.00 GiB")
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert Memory.read(tmp_path).limit is None
