# SPDX-License-Identifier: Apache-2.0
"""Which clips share a forward pass, and what a clip costs."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from kinema_api.base import Model, rules

Seconds = Annotated[float, Field(ge=0, le=1e6)]


class Cost(Model):
    """What training on one clip of n tokens takes: quadratic n^2 + linear n + clip. Only the proportions count."""

    quadratic: Seconds
    """For each pair of tokens: attention."""
    linear: Seconds
    """For each token: everything else."""
    clip: Seconds = 0.0
    """For each clip, however short."""

    def of(self, tokens: int) -> float:
        """The cost of one clip."""
        return self.quadratic * tokens**2 + self.linear * tokens + self.clip


class Packing(Model):
    """Put clips of unequal length side by side into one forward pass, none seeing the others.

    Packs are made equal in cost, not in tokens, so that no device waits for another.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!(has(self.cost) && has(self.measured) && self.measured)", "cost is given: remove measured"),
        )
    )

    tokens: int = Field(ge=1, le=10_000_000)
    """Most video tokens of a forward pass on one device (or group of devices that share one clip); at least those of
    the longest clip. A clip has (frames + 3) / 4 x height / 16 x width / 16 of them with Wan 2.1."""
    cost: Cost | None = None
    """What a clip costs, for instance what an earlier run measured (the event `cost` of its events.jsonl); the model's
    own operations when left out. Fixed by the first checkpoint of a run."""
    measured: bool = False
    """Measure what a clip costs before the first step, by a few passes over clips of several lengths, in place of the
    model's own operations. A run keeps to what it measured; another one may pack otherwise."""
