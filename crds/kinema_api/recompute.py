# SPDX-License-Identifier: Apache-2.0
"""What a training step keeps for its backward pass."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kinema_api.base import Model, Word

Operation = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9_]+(\.[A-Za-z0-9_]+){0,2}$")]


class RecomputeMode(Word):
    """What of a block is computed again in the backward pass."""

    NONE = "none"
    FULL = "full"
    SELECTIVE = "selective"
    INTERVAL = "interval"


class Recompute(Model):
    """What is kept for the backward pass, and where: memory against computation."""

    mode: RecomputeMode = RecomputeMode.NONE
    """none keeps all; full keeps the input of each block and computes the block again; selective keeps the results of
    the operations in `save` too; interval is full for every n-th block and keeps all of the others."""
    every: int = Field(default=2, ge=1, le=1000)
    """The n of every n-th block (interval only)."""
    save: list[Operation] = Field(default_factory=lambda: ["attention"], max_length=32)
    """Operations whose results are kept (selective only): attention, matmul, or torch's own name of an operator, for
    instance aten.gelu.default."""
    offload: bool = False
    """Keep what is kept in the host's memory. On a CPU it only costs time."""
