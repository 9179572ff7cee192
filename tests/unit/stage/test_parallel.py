# SPDX-License-Identifier: Apache-2.0
"""Work side by side: results in order, and one that kills its process spoils no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kinema_stage.parallel import CRASHED, cpus, processes, threads

from tests.unit.stage.support import deadline


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number * number


def test_a_crash_spoils_no_other() -> None:
    results = dict(processes(square_or_die, range(8), workers=2))
    assert results.pop(3) is CRASHED
    assert results == {number: number * number for number in range(8) if number != 3}


_PARENT = """
import os, sys
from tests.unit.stage.test_parallel import tell_and_wait
from kinema_stage.parallel import processes
if __name__ == "__main__":
    list(processes(tell_and_wait, [sys.argv[1]], workers=1))
"""


def tell_and_wait(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    threading.Event().wait()


def test_a_killed_parent_leaves_no_process(tmp_path: Path) -> None:
    script, told = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(_PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script), str(told)], env=environment) as parent:
        deadline(lambda: told.exists() and told.read_text(), what="the child runs")
        parent.kill()
    child = Path("/proc", told.read_text())
    deadline(lambda: not child.exists() or "\nState:\tZ" in (child / "status").read_text(), what="the child ends")


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
