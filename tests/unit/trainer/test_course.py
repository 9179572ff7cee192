# SPDX-License-Identifier: Apache-2.0
"""What is trained on when: every clip once an epoch, whoever trains, whenever they are stopped."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema_api.buckets import Bucket
from kinema_api.exits import Exit, StageError
from kinema_api.packing import Cost, Packing
from kinema_trainer.data import course as module
from kinema_trainer.data.costs import Shape, Table
from kinema_trainer.data.course import Course, Pack, Step, batches_of, cost_of

pytestmark = pytest.mark.unit

COST = Cost(quadratic=0.01, linear=1.0)
SHAPES: list[Shape] = [(4, 1, 2, 2), (4, 2, 4, 2), (4, 4, 4, 4), (4, 8, 4, 4)]
"""1, 4, 16 and 32 tokens."""


def table(kinds: list[int], cost: Cost = COST) -> Table:
    keys = [f"clip-{number}" for number in range(len(kinds))]
    return Table.of(keys, [SHAPES[kind] for kind in kinds], patch=(1, 2, 2), cost=cost)


def mixed(count: int) -> Table:
    return table([number * 7 % 4 for number in range(count)])


def make(mode: str, clips: Table) -> Course:
    if mode == "packed":
        return Course(clips, seed=3, packing=Packing(tokens=40))
    if mode == "bucketed":
        return Course(clips, seed=3, batch=2, batches={SHAPES[0]: 5, SHAPES[3]: 1})
    one = Table.of(clips.keys, [SHAPES[1]] * len(clips), patch=(1, 2, 2), cost=COST)
    return Course(one, seed=3, batch=3)


def consumed(step: Step) -> list[int]:
    return [slot.position for pack in step.packs for slot in pack.slots]


MODES = ["packed", "bucketed", "uniform"]


@pytest.mark.parametrize("mode", MODES)
def test_every_epoch_is_another_permutation_of_all_clips(mode: str) -> None:
    clips = mixed(37)
    course = make(mode, clips)
    seen: dict[int, list[int]] = {}
    slots = (slot for pack in course.packs(0) for slot in pack.slots)
    for slot in itertools.islice(slots, 4 * 37):
        seen.setdefault(slot.position // 37, []).append(slot.sample)
    whole = {epoch: samples for epoch, samples in seen.items() if epoch < 4}
    assert all(sorted(samples) == list(range(37)) for epoch, samples in whole.items() if epoch < 3)
    orders = [tuple(course.order(epoch).tolist()) for epoch in range(4)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_is_where_the_order_puts_it(mode: str) -> None:
    course = make(mode, mixed(37))
    for pack in itertools.islice(course.packs(0), 30):
        for slot in pack.slots:
            epoch, place = divmod(slot.position, 37)
            assert course.order(epoch)[place] == slot.sample


@pytest.mark.parametrize("mode", MODES)
def test_packs_are_the_same_however_many_make_a_step(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKED", 10)
    monkeypatch.setattr(module, "BATCHED", 10)
    clips = mixed(37)
    alone = list(itertools.islice(make(mode, clips).packs(0), 48))
    for passes, width in [(1, 4), (3, 2), (2, 8)]:
        found: list[Pack] = []
        course, start = make(mode, clips), 0
        while len(found) < len(alone):
            step = course.step(start, passes=passes, width=width)
            assert len(step.passes) == passes
            assert all(len(packs) == width for packs in step.passes)
            # Within a step packs are dealt by cost; what they are, and which step has them, is as it was.
            found += sorted(step.packs, key=lambda pack: alone.index(pack) if pack in alone else len(alone))
            start = step.consumed
        assert found[: len(alone)] == alone


@pytest.mark.parametrize("mode", MODES)
def test_a_run_goes_on_wherever_a_step_ended(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKED", 10)
    monkeypatch.setattr(module, "BATCHED", 10)
    clips = mixed(37)
    packs = list(itertools.islice(make(mode, clips).packs(0), 60))
    start = 0
    for number, pack in enumerate(packs):
        assert next(make(mode, clips).packs(start)) == pack, number
        start += len(pack.slots)


class Life:
    """A run as a cluster gives it: killed at any moment, resumed in any shape, checkpoints every so often."""

    def __init__(self, mode: str, clips: Table) -> None:
        self._mode, self._clips = mode, clips
        self.saved = 0
        self.kept: list[int] = []
        """Positions whose gradients are in the checkpoint, in the order of the steps."""

    def attempt(self, *, steps: int, every: int, passes: int, width: int) -> None:
        """Train for some steps and be killed; what came after the last checkpoint is lost."""
        course = make(self._mode, self._clips)
        course.check(json.loads(json.dumps(make(self._mode, self._clips).frozen())))
        position = self.saved
        done: list[int] = []
        for number in range(1, steps + 1):
            step = course.step(position, passes=passes, width=width)
            assert step.weight == step.samples
            # Each data coordinate takes its own share; together they take the step.
            shares = [[packs[rank] for packs in step.passes] for rank in range(width)]
            done += [slot.position for share in shares for pack in share for slot in pack.slots]
            position = step.consumed
            if number % every == 0:
                self.saved = position
                self.kept += done
                done = []


attempts = st.fixed_dictionaries(
    {"steps": st.integers(0, 7), "every": st.integers(1, 3), "passes": st.integers(1, 3), "width": st.integers(1, 8)}
)
LIVES: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(MODES),
    "clips": st.integers(1, 40),
    "lives": st.lists(attempts, min_size=1, max_size=8),
    "window": st.integers(4, 50),
}
"""Any life; `tests/slow` tries many more of them."""


@settings(deadline=None, max_examples=25)
@given(**LIVES)
def test_any_life_takes_every_clip_exactly_once_an_epoch(
    mode: str, clips: int, lives: list[dict[str, int]], window: int
) -> None:
    every_clip_once(mode, clips=clips, lives=lives, window=window)


def every_clip_once(mode: str, *, clips: int, lives: list[dict[str, int]], window: int) -> None:
    """Live, and compare with an undisturbed course."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PACKED", window)
        patch.setattr(module, "BATCHED", window)
        life = Life(mode, mixed(clips))
        for attempt in lives:
            life.attempt(**attempt)
        course = make(mode, mixed(clips))
        packs = course.packs(0)
        expected: list[int] = []
        while len(expected) < life.saved:
            expected += [slot.position for slot in next(packs).slots]
    # No more, no less, none twice: the very clips that an undisturbed run takes up to there.
    assert Counter(life.kept) == Counter(expected)
    assert len(expected) == life.saved
    whole = life.saved // clips
    for epoch in range(whole):
        taken = [position for position in life.kept if position // clips == epoch]
        order = course.order(epoch)
        assert sorted(int(order[position % clips]) for position in taken) == list(range(clips))


def test_the_order_is_that_of_the_first_release() -> None:
    course = make("uniform", mixed(7))
    assert course.order(0).tolist() == [1, 2, 3, 6, 0, 5, 4]


def test_packs_of_a_step_are_balanced_and_the_imbalance_is_said() -> None:
    clips = table([place % 4 for place in range(1000)])
    packed = Course(clips, seed=1, packing=Packing(tokens=64))
    single = Course(clips, seed=1, batch=1)
    ours = [packed.step(0, passes=2, width=8).imbalance for _ in range(1)]
    assert max(ours) < 0.1
    assert single.step(0, passes=2, width=8).imbalance > 0.15
    assert single.step(0, passes=2, width=1).imbalance == 0


def test_a_clip_that_no_pack_holds_is_refused_by_name() -> None:
    with pytest.raises(StageError, match=r"clip clip-3 has 32 tokens.*a pack at most 31; raise it to 32") as caught:
        Course(table([0, 1, 2, 3]), seed=1, packing=Packing(tokens=31))
    assert caught.value.code is Exit.USER


def test_without_clips_there_is_nothing_to_train_on() -> None:
    with pytest.raises(StageError, match="no clips") as caught:
        Course(table([]), seed=1)
    assert caught.value.code is Exit.DATA


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: make("packed", mixed(36)), "the number of clips"),
        (lambda: make("packed", table([0] * 37)), "the clips, or what they cost"),
        (lambda: Course(mixed(37), seed=4, packing=Packing(tokens=40)), "stages.train.seed"),
        (lambda: Course(mixed(37), seed=3, packing=Packing(tokens=41)), "packing.tokens"),
    ],
)
def test_another_course_is_not_gone_on_with(other: object, what: str) -> None:
    frozen = json.loads(json.dumps(make("packed", mixed(37)).frozen()))
    assert callable(other)
    with pytest.raises(StageError, match=what) as caught:
        other().check(frozen)
    assert caught.value.code is Exit.USER


@pytest.mark.parametrize("mode", MODES)
def test_a_version_that_orders_or_packs_otherwise_does_not_go_on(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = json.loads(json.dumps(make(mode, mixed(37)).frozen()))
    make(mode, mixed(37)).check(frozen)
    with monkeypatch.context() as patch:
        original = torch.randperm
        patch.setattr(torch, "randperm", lambda size, **given: original(size, **given).flip(0))
        with pytest.raises(StageError, match="by another version of the image"):
            make(mode, mixed(37)).check(frozen)
    if mode == "packed":
        monkeypatch.setattr(module, "balanced", lambda tokens, costs, budget: [[place] for place in range(len(tokens))])
        with pytest.raises(StageError, match="by another version of the image"):
            make(mode, mixed(37)).check(frozen)


def test_the_batches_of_buckets_are_fixed_those_of_one_shape_are_not() -> None:
    bucketed = make("bucketed", mixed(37))
    with pytest.raises(StageError, match="batches of the buckets"):
        Course(mixed(37), seed=3, batch=2).check(bucketed.frozen())
    one = table([1] * 9)
    Course(one, seed=3, batch=4).check(Course(one, seed=3, batch=2).frozen())


def test_a_position_within_a_pack_is_refused() -> None:
    course = make("packed", mixed(37))
    packs = course.packs(0)
    first = next(pack for pack in packs if len(pack.slots) > 1)
    before = sum(len(pack.slots) for pack in itertools.takewhile(lambda pack: pack != first, course.packs(0)))
    with pytest.raises(StageError, match="lies within a pack"):
        next(course.packs(before + 1))


def test_the_cost_is_frozen_by_the_first_checkpoint() -> None:
    given_, guess = Cost(quadratic=1, linear=1), Cost(quadratic=2, linear=2)
    packing = Packing(tokens=9, cost=given_)
    assert cost_of(None, packing=None, predicted=guess) == guess
    assert cost_of(None, packing=packing, predicted=guess) == given_
    frozen = make("packed", mixed(5)).frozen()
    assert cost_of(json.loads(json.dumps(frozen)), packing=packing, predicted=guess) == COST
    assert cost_of({}, packing=packing, predicted=guess) == given_


def test_buckets_say_the_batch_of_each_shape() -> None:
    buckets = [Bucket(frames=17, height=64, width=96, batch=2), Bucket(frames=1, height=128, width=64, batch=9)]
    found = batches_of(buckets, channels=16, temporal=4, spatial=8)
    assert found == {(16, 5, 8, 12): 2, (16, 1, 16, 8): 9}
