# SPDX-License-Identifier: Apache-2.0
"""Who of the training processes gives no sign of life, and how that is said."""

from __future__ import annotations

from kinema_stage.ledger import Spent
from kinema_stage.pace import Phase
from kinema_trainer.gang import QUIET_SECONDS, SLACK_SECONDS, Roll, sentence
from kinema_trainer.numbers.reports import Beat, Failure


def beat(number: int, *, phase: Phase = Phase.WORKING, limit: float = 10) -> Beat:
    return Beat(number=number, phase=phase, limit=limit, spent=Spent(productive=number))


def test_a_sign_of_life_survives_as_json() -> None:
    for one in (beat(3), beat(4, phase=Phase.STARTING, limit=float("inf"))):
        assert Beat.decode(one.encode()) == one


def test_who_gives_no_sign_is_quiet_then_overdue_and_others_are_not() -> None:
    roll = Roll()
    for now in range(30):
        roll.hear({0: beat(now), 1: beat(min(now, 7)), 2: beat(min(now, 7), phase=Phase.ENDED)}, now=now)
        silent = now - 7
        assert (1 in roll.quiet(now=now)) == (silent > QUIET_SECONDS)
        assert (1 in roll.overdue(now=now)) == (silent > 10 + SLACK_SECONDS)
        assert not {0, 2} & set(roll.quiet(now=now))
    assert roll.first() == beat(29)


def test_a_slow_start_is_allowed_its_own_limit() -> None:
    roll = Roll()
    roll.hear({0: beat(1, phase=Phase.STARTING, limit=1800)}, now=0)
    assert (roll.quiet(now=900), roll.overdue(now=900)) == ({0: 900}, {})
    assert roll.overdue(now=1803) == {0: 1803}


def test_a_frozen_process_is_overdue_before_its_peers_on_other_nodes_find_themselves_hung() -> None:
    roll = Roll(alone=False)
    for now in range(20):
        roll.hear({0: beat(now, limit=20), 1: beat(0, limit=20)}, now=now)
        assert (1 in roll.overdue(now=now)) == (now > 12)
    assert roll.limit([1]) == 12


def test_the_sentence_names_the_cause_and_who_waited() -> None:
    peer = Failure(rank=0, code=71, message="rank 0 did not move", at=0)
    assert sentence({1: 12.3}, limit=10, states={1: "T"}, stalled={0: peer}) == (
        "rank 1 (stopped by a signal) gave no sign of life for 12 s, the limit is 10 s; rank 0 hung waiting for it"
    )
    assert sentence({1: 12, 3: 13}, limit=10, states={}, stalled={}) == (
        "rank 1 (it does not answer) and rank 3 (it does not answer) each gave no sign of life for 13 s,"
        " the limit is 10 s"
    )


def test_the_limit_that_is_named_is_the_one_that_ran_out_first() -> None:
    roll = Roll()
    roll.hear({0: beat(1), 1: beat(1, phase=Phase.SAVING, limit=900)}, now=0)
    assert roll.limit([1]) == 900
    assert roll.limit([1, 0]) == 10, "rank 0 found itself hung while rank 1 was frozen in a save"
