# SPDX-License-Identifier: Apache-2.0
"""The memory that `kinema-trainer plan` tells is the memory that processes have at their peak, within 10 %.

Nothing is fitted: the plan is a rehearsal on fake tensors, the measurement is the kernel's, of the engine's own loop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kinema_trainer.planning import plan

from tests.slow.memory_runs import RUNS, model, request_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TOLERANCE = 0.1
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # What is freed goes back to the kernel at once, so that the peak is one of what is held.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


def measured(name: str, meeting: Path) -> list[int]:
    """The peak of each process over what it had after its imports, in bytes."""
    world = RUNS[name].world
    command = [sys.executable, "-m", "tests.slow.memory_process", name]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(meeting)],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    found = []
    for process in processes:
        said, _ = process.communicate()
        assert process.returncode == 0
        line = json.loads(said.splitlines()[-1])
        found.append(line["peak"] - line["before"])
    return found


def test_the_model_has_more_than_a_gibibyte() -> None:
    assert 4 * model().transformer.parameters > 1 << 30


@pytest.mark.parametrize("name", RUNS)
def test_planned_memory_is_the_measured_one(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan.make(request_of(RUNS[name])).memory_total
    for rank, peak in enumerate(measured(name, tmp_path / "meeting")):
        with capsys.disabled():
            print(
                f"\n{name}, rank {rank}: planned {planned >> 20} MiB, measured {peak >> 20} MiB, {planned / peak:.3f}"
            )
        assert planned == pytest.approx(peak, rel=TOLERANCE)
