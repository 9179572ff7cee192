# SPDX-License-Identifier: Apache-2.0
"""Who holds up the others."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from kinema_trainer.numbers import ranks
from kinema_trainer.numbers.ranks import PROBE, RollCall, Straggler, latest

pytestmark = pytest.mark.unit

NODES = ("a", "a", "b", "b")


@pytest.mark.parametrize(
    ("table", "rank", "column"),
    [
        ({"data": [0.0, 0.01, 0.5, 0.02]}, 2, "data"),
        ({"data": [0.0] * 4, PROBE: [1e-3, 1e-3, 1.02e-3, 2e-3]}, 3, PROBE),
        ({"data": [0.0, 0.2, 0.0, 0.0], PROBE: [1e-3, 1e-3, 1e-3, 2e-3]}, 3, PROBE),
        ({"data": [0.0] * 4, "forward": [1.0, 1.0, 1.3, 1.0]}, 2, "forward"),
    ],
)
def test_the_process_that_costs_most_is_named(table: dict[str, list[float]], rank: int, column: str) -> None:
    found = latest(table, nodes=NODES, step=1.0)
    assert found is not None
    assert (found.rank, found.node, found.column) == (rank, NODES[rank], column)


@pytest.mark.parametrize(
    "table",
    [
        {"data": [0.0, 0.0, 0.0, 0.0], PROBE: [0.0, 0.0, 0.0, 0.0]},
        {"data": [0.5, 0.5, 0.5, 0.5], PROBE: [1e-3, 1.1e-3, 1.2e-3, 1e-3]},
        {"data": [0.0, 0.05, 0.02, 0.0]},
    ],
    ids=["idle", "all alike", "within a tenth of a step"],
)
def test_nobody_is_named_without_cause(table: dict[str, list[float]]) -> None:
    assert latest(table, nodes=NODES, step=1.0) is None


def test_a_straggler_is_told_in_a_sentence() -> None:
    told = str(Straggler(rank=5, node="gpu-7", column="data", seconds=0.41234, median=0.002))
    assert told == "rank 5 on gpu-7: it waits for data 0.412 s, the middle one 0.002 s"


def test_a_single_process_is_not_measured() -> None:
    call = RollCall(torch.device("cpu"), world=1)
    assert all(call.step(step, {"data": 9.0}, seconds=1.0, memory=float) is None for step in range(1, 50))
    assert call.table == {}


def _process(rank: int, world: int, meeting: str, results: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    call = RollCall(torch.device("cpu"), world=world, every=2)
    call._probe.measure = lambda: 1e-3  # type: ignore[union-attr, method-assign]
    waits = {"data": 0.4 if rank == 1 else 0.01}
    said = [call.step(step, waits, seconds=1.0, memory=lambda: 1e9 * (rank + 1)) for step in range(1, 7)]
    results.send((said, call.table, call.memory))
    dist.destroy_process_group()


def test_all_processes_hear_who_is_late_at_the_second_roll_call(tmp_path: Path) -> None:
    world = 2
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_process, args=(rank, world, str(tmp_path / "meeting"), pipes[rank][1]))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    results = [receiving.recv() for receiving, _ in pipes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for said, table, memory in results:
        assert memory == [1e9, 2e9]
        assert table == {"data": pytest.approx([0.01, 0.4]), PROBE: [1e-3, 1e-3]}
        assert [one is not None for one in said] == [False, False, False, True, False, True]
        assert said[3].rank == 1 and said[3].node


def test_the_probe_takes_a_moment_on_a_cpu() -> None:
    assert 0 < ranks.Probe(torch.device("cpu")).measure() < 1
