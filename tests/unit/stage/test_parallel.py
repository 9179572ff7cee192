# SPDX-License-Identifier: Apache-2.0
"""Work side by side: results in order, and one that kills its process spoils no other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kinema_stage.parallel import CRASHED, cpus, processes, threads


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number * number


def test_a_crash_spoils_no_other() -> None:
    results = dict(processes(square_or_die, range(8), workers=2))
    assert results.pop(3) is CRASHED
    assert results == {number: number * number for number in range(8) if number != 3}


def fail(number: int) -> int:
    raise ValueError(f"bug {number}")


def test_an_exception_is_passed_on() -> None:
    with pytest.raises(ValueError, match="bug 0"):
        list(processes(fail, [0], workers=1))


def test_threads_keep_the_order() -> None:
    assert threads(lambda number: number + 1, range(10_000)) == list(range(1, 10_001))


@pytest.mark.parametrize(("content", "least"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1)])
def test_a_containers_quota_counts(tmp_path: Path, content: str, least: int | None) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(content)
    assert cpus(path) == (least or len(os.sched_getaffinity(0)))
    assert cpus(tmp_path / "none") == len(os.sched_getaffinity(0))
