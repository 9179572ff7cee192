# SPDX-License-Identifier: Apache-2.0
"""How long nothing may move before it is taken for a hang: a function of what was seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kinema_api.base import Word
from kinema_api.names import Stage
from kinema_api.stage import AnyStageConfig

STARTING_SECONDS = 1800.0
"""Imports, images on the other nodes, rendezvous, the model's load, compilation."""
SAVING_SECONDS = 900.0
"""A checkpoint whose files do not grow: an object store shows a file only when it is whole."""
FACTOR = 10.0
"""The limit in longest recent moves: the pace of video varies little, and a hang lasts for ever."""
WINDOW = 64
"""Recent moves that count."""
FLOOR_SECONDS = {Stage.TRAIN: 120.0}
OTHER_FLOOR_SECONDS = 900.0
"""Other stages have units of unlike length: a clip beside the publication of all."""


class Phase(Word):
    """What a process is at."""

    STARTING = "starting"
    WORKING = "working"
    SAVING = "saving"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Rule:
    """What bounds the limit."""

    floor: float
    """The least limit that follows from the pace, in seconds."""
    override: float | None = None
    """What the user says in place of the pace; 0 is never."""

    @classmethod
    def of(cls, config: AnyStageConfig) -> Rule:
        """The rule of a stage: `stallSeconds` where it is set."""
        settings = getattr(config, "settings", None)
        return cls(
            floor=FLOOR_SECONDS.get(config.stage, OTHER_FLOOR_SECONDS),
            override=None if settings is None else settings.stall_seconds,
        )


NEVER = Rule(floor=0.0, override=0.0)


def limit(rule: Rule, *, phase: Phase, moves: Sequence[float]) -> float:
    """Seconds without a move that are taken for a hang; infinite for never.

    Args:
        rule: what bounds it.
        phase: what the process is at.
        moves: seconds between the recent moves of its work.
    """
    if rule.override == 0:
        return float("inf")
    working = rule.override or max(rule.floor, FACTOR * max(moves, default=0.0))
    least = {Phase.STARTING: STARTING_SECONDS, Phase.SAVING: SAVING_SECONDS}.get(phase, 0.0)
    return max(working, least)
