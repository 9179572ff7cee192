# SPDX-License-Identifier: Apache-2.0
"""Every layout trains as one process does."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.parity.cases import FEWEST, LAYOUTS, MORE_LAYOUTS, STEPS, Case
from tests.parity.processes import Processes

ALL = {**LAYOUTS, **MORE_LAYOUTS}
FOUND: dict[Case, tuple[float, str]] = {}
"""The largest difference of each case, as a share of what is allowed, and of what."""
FAST = ("HSDP", "TP+SP", "Ulysses x ring x TP")


def marked(names: Iterable[str], fast: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


def check(processes: Processes, case: Case) -> None:
    outcomes = processes.run(case)
    found = [(ratio, f"{part} {name}") for outcome in outcomes for part, (ratio, name) in outcome.worst.items()]
    FOUND[case] = max(found)
    for rank, outcome in enumerate(outcomes):
        for part, (ratio, name) in outcome.worst.items():
            assert ratio <= 1, f"rank {rank}: {part} {name} differs by {ratio:.3g} of what is allowed"


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("name", marked(ALL, FAST))
def test_loss_and_gradients(processes: Processes, name: str, task: str) -> None:
    check(processes, Case(task=task, layout=ALL[name]))


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("name", marked(ALL, ("TP x FSDP2",)))
def test_five_steps(processes: Processes, name: str, task: str) -> None:
    check(processes, Case(task=task, layout=ALL[name], steps=STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Ulysses, 4", "ring, 4", "TP+SP, 4", "TP+SP x Ulysses x ring", "Ulysses x FSDP2"])
def test_processes_without_any_token(processes: Processes, name: str) -> None:
    check(processes, Case(layout=ALL[name], shapes=FEWEST))
