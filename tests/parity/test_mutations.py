# SPDX-License-Identifier: Apache-2.0
"""The comparison with one process notices every exchange that is left out, runs in another group or takes the mean."""

from __future__ import annotations

import pytest

from kinema_trainer.parallel.collectives import Use

from tests.parity.cases import EVEN, Case
from tests.parity.mutations import CAUGHT, COPIED, GATHERED, MUTATIONS, REDUCED, Kind, Mutation
from tests.parity.processes import BrokenError, Processes

FAST = (Use.TENSOR_NORM_GRADIENT, Use.RING_GRADIENT, REDUCED)


def params() -> list[object]:
    return [
        pytest.param(
            mutation,
            id=f"{mutation}, {'x'.join(mutation.layout)}",
            marks=[] if mutation.exchange in FAST and mutation.kind is Kind.LEFT_OUT else [pytest.mark.slow],
        )
        for mutation in MUTATIONS
    ]


def test_every_exchange_is_broken_by_some_mutation() -> None:
    assert {mutation.exchange for mutation in MUTATIONS} == {*map(str, Use), GATHERED, REDUCED, COPIED}
    reductions = {mutation.exchange for mutation in MUTATIONS if mutation.kind is Kind.MEAN}
    assert {Use.TENSOR_OUTPUT, Use.NORM, Use.LOSS, REDUCED, COPIED} <= reductions


@pytest.mark.parametrize("mutation", params())
def test_a_broken_exchange_is_noticed(processes: Processes, mutation: Mutation) -> None:
    broken = (mutation.exchange, mutation.kind.value)
    case = Case(layout=mutation.layout, shapes=EVEN, broken=broken, settings=mutation.settings)
    try:
        outcomes = processes.run(case)
    except BrokenError as error:
        # Only in another group are there too few or too many to exchange with.
        if mutation.kind is not Kind.WRONG_GROUP or "no answer in time" in str(error):
            raise
        CAUGHT[mutation] = f"fails: {str(error).strip().splitlines()[-1][:60]}"
        return
    worst = max(
        ((*found, part) for outcome in outcomes for part, found in outcome.worst.items()), key=lambda one: one[0]
    )
    ratio, name, part = worst
    CAUGHT[mutation] = f"{part} {name}: {ratio:.3g} of what is allowed"
    assert ratio > 1, f"nothing noticed: {CAUGHT[mutation]}"


@pytest.mark.slow
def test_without_mutation_the_same_clips_agree(processes: Processes) -> None:
    for one in {str((mutation.layout, mutation.lora)): mutation for mutation in MUTATIONS}.values():
        for outcome in processes.run(Case(layout=one.layout, shapes=EVEN, settings=one.settings)):
            assert max(ratio for ratio, _ in outcome.worst.values()) <= 1, f"{one.layout}, {one.settings}"
