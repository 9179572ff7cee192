# SPDX-License-Identifier: Apache-2.0
"""When a process counts as hung."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kinema_stage.pace import FACTOR, NEVER, SAVING_SECONDS, STARTING_SECONDS, Phase, Rule, limit
from kinema_stage.watchdog import ASLEEP_SECONDS, Awake, Stall, Watchdog

PACED = Rule(floor=120)
TOLD = Rule(floor=120, override=10)


@pytest.mark.parametrize(
    ("rule", "phase", "moves", "seconds"),
    [
        (PACED, Phase.STARTING, (), STARTING_SECONDS),
        (PACED, Phase.STARTING, (STARTING_SECONDS,), FACTOR * STARTING_SECONDS),
        (PACED, Phase.WORKING, (), 120),
        (PACED, Phase.WORKING, (0.3, 0.4), 120),
        (PACED, Phase.WORKING, (30.0, 40.0, 31.0), 400),
        (PACED, Phase.SAVING, (30.0,), SAVING_SECONDS),
        (PACED, Phase.SAVING, (300.0,), 3000),
        (TOLD, Phase.STARTING, (), STARTING_SECONDS),
        (TOLD, Phase.WORKING, (300.0,), 10),
        (TOLD, Phase.SAVING, (), SAVING_SECONDS),
        (Rule(floor=120, override=7200), Phase.STARTING, (), 7200),
        (NEVER, Phase.WORKING, (1.0,), float("inf")),
        (NEVER, Phase.STARTING, (), float("inf")),
    ],
)
def test_the_limit_follows_the_pace_unless_it_is_told(
    rule: Rule, phase: Phase, moves: tuple[float, ...], seconds: float
) -> None:
    assert limit(rule, phase=phase, moves=moves) == seconds


def test_the_start_ends_with_the_first_work() -> None:
    watchdog = Watchdog(rule=TOLD, on_stall=print)
    watchdog.moved(work=False)
    assert (watchdog.phase, watchdog.limit) == (Phase.STARTING, STARTING_SECONDS)
    watchdog.moved()
    assert (watchdog.phase, watchdog.limit) == (Phase.WORKING, 10)
    with watchdog.saving():
        watchdog.moved()
        assert watchdog.limit == SAVING_SECONDS
    assert watchdog.limit == 10


def test_a_checkpoint_before_the_first_step_leaves_the_start_as_it_is() -> None:
    watchdog = Watchdog(rule=TOLD, on_stall=print)
    with watchdog.saving():
        pass
    assert watchdog.phase is Phase.STARTING


@pytest.mark.parametrize(
    ("looks", "ran"),
    [
        ([0.0, 1.0, 2.0, 3.0], 3.0),
        ([0.0, 1.0, 1.0 + ASLEEP_SECONDS], 1.0 + ASLEEP_SECONDS),
        ([0.0, 1.0, 601.0, 602.0], 2.0),
        ([0.0, 600.0, 1200.0], 0.0),
    ],
)
def test_a_watcher_that_slept_itself_counts_none_of_it(looks: list[float], ran: float) -> None:
    clock = iter(looks)
    awake = Awake(lambda: next(clock))
    times = [awake.now() for _ in looks[1:]]
    assert times[-1] == ran
    assert all(earlier <= later for earlier, later in pairwise(times))


@pytest.mark.parametrize(
    ("phase", "sentence"),
    [
        (Phase.STARTING, "did not begin its work for 12 s, the limit is 10 s"),
        (Phase.WORKING, "did not move for 12 s, the limit is 10 s"),
        (Phase.SAVING, "waited for a checkpoint that does not grow for 12 s, the limit is 10 s"),
    ],
)
def test_a_stall_says_what_how_long_and_which_limit(phase: Phase, sentence: str) -> None:
    assert str(Stall(seconds=12.2, limit=10, phase=phase)) == sentence
