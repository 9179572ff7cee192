# SPDX-License-Identifier: Apache-2.0
"""Which clips of a window share a forward pass: pure functions of their tokens, costs and shapes."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Group = TypeVar("Group", bound=Hashable)
LOOSER = (1.03, 1.06, 1.1)
"""Numbers of packs that are tried, over the fewest: with more room, costs come out more equal."""


def balanced(tokens: Sequence[int], costs: Sequence[float], *, budget: int) -> list[list[int]]:
    """Packs of at most `budget` tokens whose costs are as equal as that allows; each clip is in one.

    The dearest clip goes first, each into the pack that is cheapest so far and has room. Of a few numbers of packs,
    from the fewest that hold all, that counts by which packs that run side by side end soonest.

    Args:
        tokens: of each clip, none above the budget.
        costs: of each clip.
        budget: tokens of a pack at most.

    Returns:
        Places of the clips; packs by their first clip, clips within a pack in order.
    """
    if not tokens:
        return []
    if max(tokens) > budget:
        raise ValueError(f"a clip of {max(tokens)} tokens does not fit into a pack of {budget}")
    order = sorted(range(len(tokens)), key=lambda place: (-costs[place], place))
    packs, count = _fewest(order, tokens, costs, budget=budget)
    best, shortest = packs, count * _dearest(packs, costs)
    for more in sorted({math.ceil(count * share) for share in LOOSER} - {count}):
        packs, left = _fill(order, tokens, costs, budget=budget, count=more)
        time = more * _dearest(packs, costs)
        if not left and time < shortest:
            best, shortest = packs, time
    return sorted((sorted(pack) for pack in best if pack), key=lambda pack: pack[0])


def _dearest(packs: Sequence[Sequence[int]], costs: Sequence[float]) -> float:
    return max(sum(costs[place] for place in pack) for pack in packs)


def _fewest(
    order: Sequence[int], tokens: Sequence[int], costs: Sequence[float], *, budget: int
) -> tuple[list[list[int]], int]:
    """The fewest packs found that hold all clips, and how many they are."""
    count = math.ceil(sum(tokens) / budget)
    while True:
        packs, left = _fill(order, tokens, costs, budget=budget, count=count)
        if not left:
            return packs, count
        count += math.ceil(left / budget)


def _fill(
    order: Sequence[int], tokens: Sequence[int], costs: Sequence[float], *, budget: int, count: int
) -> tuple[list[list[int]], int]:
    """So many packs, and the tokens that found no room."""
    packs: list[list[int]] = [[] for _ in range(count)]
    room = [budget] * count
    heap = [(0.0, index) for index in range(count)]
    left = 0
    for place in order:
        passed: list[tuple[float, int]] = []
        while heap and room[heap[0][1]] < tokens[place]:
            passed.append(heapq.heappop(heap))
        if heap:
            cost, index = heap[0]
            heapq.heapreplace(heap, (cost + costs[place], index))
            packs[index].append(place)
            room[index] -= tokens[place]
        else:
            left += tokens[place]
        for entry in passed:
            heapq.heappush(heap, entry)
    return packs, left


def alike(groups: Sequence[Group], sizes: Mapping[Group, int]) -> list[list[int]]:
    """Batches of clips of one group, as many of each as its size; what is left of a group is a smaller batch.

    Returns:
        Places of the clips; batches by their last clip.
    """
    open_batches: dict[Group, list[int]] = defaultdict(list)
    done: list[list[int]] = []
    for place, group in enumerate(groups):
        batch = open_batches[group]
        batch.append(place)
        if len(batch) == sizes[group]:
            done.append(open_batches.pop(group))
    return sorted([*done, *open_batches.values()], key=lambda batch: batch[-1])


def dealt(costs: Sequence[float], *, passes: int, width: int) -> list[list[int]]:
    """Packs of a step by forward pass and data coordinate: those that run at the same time cost about the same.

    Neighbours in cost share a pass, and the order within turns from pass to pass, so that both the sum of the dearest
    of each pass and the difference of the coordinates' sums are small.
    """
    order = sorted(range(passes * width), key=lambda pack: (-costs[pack], pack))
    rows = [order[start : start + width] for start in range(0, len(order), width)]
    return [row if number % 2 == 0 else row[::-1] for number, row in enumerate(rows)]
