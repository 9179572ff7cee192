# SPDX-License-Identifier: Apache-2.0
"""The pace of every process, gathered now and then, so that one that holds up the others has a name.

In a step all processes wait for each other, so that its time says nothing of who is late. What is compared is what a
process does alone: its wait for data, a small matrix product that each one times on its own device and, where a forward
pass has no collective, that pass.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from kinema_api.names import ENV_NODE

EVERY = 10
"""Steps between two roll calls."""
TOLERANCE = 0.1
"""A process is late when what it does alone takes longer than the middle one's by this share of a step."""
SLOW = 1.25
"""A device is slow when its matrix product takes so many times as long as the middle one's."""
STRIKES = 2
"""Roll calls in a row after which a late process is named: a single one may be chance."""
_SIZE = {"cpu": 192}
_LARGE = 2048
_REPEATS = 3
PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Straggler:
    """The process that holds up the others."""

    rank: int
    node: str
    column: str
    """What takes it so long: data, forward, or the probe."""
    seconds: float
    median: float
    """The middle one of all processes."""

    @property
    def place(self) -> str:
        """Who it is."""
        return f"rank {self.rank} on {self.node}"

    def __str__(self) -> str:
        what = {PROBE: "its device takes", "data": "it waits for data", "forward": "its forward pass takes"}
        took = f"{what.get(self.column, self.column)} {self.seconds:.3g} s, the middle one {self.median:.3g} s"
        return f"{self.place}: {took}"


def latest(table: Mapping[str, Sequence[float]], *, nodes: Sequence[str], step: float) -> Straggler | None:
    """The process that is furthest behind, if one is.

    Args:
        table: seconds of each process by rank, for each thing that processes do alone.
        nodes: the node of each process by rank.
        step: seconds of a whole step.
    """
    found: list[tuple[float, Straggler]] = []
    for column, values in table.items():
        middle = statistics.median_low(values)
        rank = max(range(len(values)), key=values.__getitem__)
        late = values[rank] - middle
        behind = values[rank] / middle - 1 >= SLOW - 1 if column == PROBE and middle else late > TOLERANCE * step
        if behind and late > 0:
            # A slow device is slow in the whole step, not in the probe alone.
            cost = step * late / middle if column == PROBE else late
            found.append((cost, Straggler(rank, nodes[rank], column, values[rank], middle)))
    return max(found, key=lambda item: item[0])[1] if found else None


class Probe:
    """A matrix product that a process times alone on its device.

    On an accelerator it is timed by events that are read at the next call: nobody waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        size = _SIZE.get(device.type, _LARGE)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._matrix = torch.full((size, size), 1e-3, device=device, dtype=dtype)
        self._result = torch.empty_like(self._matrix)
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._events: list[tuple[Any, Any]] = []

    def measure(self) -> float:
        """Seconds of the fastest repetition: of this call on a CPU, else of the last one; 0 before there is one."""
        if self._module is None:
            return min(self._timed() for _ in range(_REPEATS))
        done = [start.elapsed_time(end) / 1e3 for start, end in self._events if end.query()]
        self._events = [self._recorded() for _ in range(_REPEATS)]
        return min(done, default=0.0)

    def _timed(self) -> float:
        began = time.perf_counter()
        torch.mm(self._matrix, self._matrix, out=self._result)
        return time.perf_counter() - began

    def _recorded(self) -> tuple[Any, Any]:
        start, end = (self._module.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(self._matrix, self._matrix, out=self._result)
        end.record()
        return start, end


class RollCall:
    """Every process of a run calls it after each step; all return the same.

    Args:
        device: of this process.
        world: processes of the run.
        own: phases in which a process waits for no other.
        every: steps between two roll calls.
    """

    def __init__(self, device: torch.device, *, world: int, own: Sequence[str] = ("data",), every: int = EVERY) -> None:
        self._world = world
        self._columns = (*own, PROBE)
        self._every = every
        self._probe = Probe(device) if world > 1 else None
        self._nodes: list[str] = []
        self._summed = dict.fromkeys(own, 0.0)
        self._steps = 0
        self._suspect: tuple[int, int] = (-1, 0)
        self.table: dict[str, list[float]] = {}
        """Seconds a step of each process by rank, as last gathered."""
        self.memory: list[float] = []
        """Bytes that each process has had at most, by rank, as last gathered."""

    def due(self, step: int) -> bool:
        """Whether this is a step with a roll call."""
        return self._probe is not None and step % self._every == 0

    def step(
        self, step: int, phases: Mapping[str, float], *, seconds: float, memory: Callable[[], float]
    ) -> Straggler | None:
        """Take in a step; at every n-th one, the process that has been behind for several roll calls.

        Args:
            step: its number.
            phases: seconds of this process by phase.
            seconds: of the whole step.
            memory: the bytes that this process has had at most.
        """
        if self._probe is None:
            return None
        self._steps += 1
        for name in self._summed:
            self._summed[name] += phases.get(name, 0.0)
        if not self.due(step):
            return None
        mine = [*(self._summed[name] / self._steps for name in self._summed), self._probe.measure(), memory()]
        self._summed, self._steps = dict.fromkeys(self._summed, 0.0), 0
        rows = self._gather(mine)
        self.table = {name: [row[index] for row in rows] for index, name in enumerate(self._columns)}
        self.memory = [row[-1] for row in rows]
        return self._judge(latest(self.table, nodes=self._names(), step=seconds))

    def _judge(self, found: Straggler | None) -> Straggler | None:
        rank, strikes = self._suspect
        if found is None:
            self._suspect = (-1, 0)
            return None
        self._suspect = (found.rank, strikes + 1 if found.rank == rank else 1)
        return found if self._suspect[1] >= STRIKES else None

    def _gather(self, mine: Sequence[float]) -> list[list[float]]:
        """Each process's numbers, over the CPU's own group: the device need not be idle."""
        sent = torch.tensor(mine, dtype=torch.float64)
        received = torch.empty(self._world * len(mine), dtype=torch.float64)
        dist.all_gather_into_tensor(received, sent)
        return received.view(self._world, -1).tolist()

    def _names(self) -> list[str]:
        if not self._nodes:
            names: list[Any] = [None] * self._world
            dist.all_gather_object(names, os.environ.get(ENV_NODE) or socket.gethostname())
            self._nodes = names
        return self._nodes
