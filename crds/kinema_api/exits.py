# SPDX-License-Identifier: Apache-2.0
"""How a stage ends: typed exit codes, and the message it leaves for the operator.

Exit codes are below 128, because training-operator and shells read higher ones as signals.
"""

from __future__ import annotations

from enum import IntEnum

from pydantic import Field

from kinema_api.base import Model
from kinema_api.names import TERMINATION_LIMIT


class Exit(IntEnum):
    """Exit code of a stage. `retryable` says whether another attempt can help."""

    OK = 0
    INTERNAL = 1
    """A bug, or something the stage could not name."""
    USER = 64
    """The job's spec or its inputs are wrong; the message says which and what to do."""
    DATA = 65
    """The dataset has nothing usable."""
    STORAGE = 66
    """The workspace cannot be read or written, or is full."""
    WEIGHTS = 67
    """Weights are missing, truncated or of another shape."""
    NUMERICS = 68
    """The loss is not finite."""
    OUT_OF_MEMORY = 69
    """The device ran out of memory."""
    COMMUNICATION = 70
    """A collective or the rendezvous failed: usually another member died."""
    STALLED = 71
    """The watchdog saw nothing move for too long."""
    INTERRUPTED = 75
    """SIGTERM came; state was saved and the same stage can go on."""

    @property
    def retryable(self) -> bool:
        """Whether running the stage again can help without a change by the user."""
        return self in _RETRYABLE


_RETRYABLE = frozenset({Exit.INTERNAL, Exit.STORAGE, Exit.COMMUNICATION, Exit.STALLED, Exit.INTERRUPTED})


class StageError(Exception):
    """A stage cannot go on, and knows why.

    Args:
        code: what the process exits with.
        message: one sentence: what was wrong, where, and what to do.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Termination(Model):
    """What a container writes to its termination log: at most 4,096 bytes of JSON."""

    code: int
    """The exit code, see `Exit`."""
    reason: str = Field(default="", max_length=64)
    """One CamelCase word: `Succeeded`, `Skipped`, or the name of the failure."""
    message: str = ""
    """One sentence for the user."""
    artifact: str | None = None
    """Address of what the stage made."""
    digest: str | None = None
    """Digest of the artifact's manifest."""
    counts: dict[str, int] = Field(default_factory=dict)
    """What was done, for instance `{"clips": 4, "encoded": 2, "skipped": 2}`."""
    keys: dict[str, str] = Field(default_factory=dict)
    """check only: the artifact key of every shared stage."""
    existing: list[str] = Field(default_factory=list)
    """check only: stages whose artifact is already published."""

    def encode(self) -> bytes:
        """The JSON that goes into the termination log, its message shortened until it fits."""
        data = self.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(data) <= TERMINATION_LIMIT:
            return data
        keep = max(0, len(self.message.encode()) - (len(data) - TERMINATION_LIMIT) - 8)
        short = self.message.encode()[:keep].decode(errors="ignore") + "..."
        return self.model_copy(update={"message": short}).model_dump_json(by_alias=True, exclude_none=True).encode()
