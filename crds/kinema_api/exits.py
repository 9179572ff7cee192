# SPDX-License-Identifier: Apache-2.0
"""How a stage ends: typed exit codes, and the message it leaves for the operator.

Exit codes are below 128, because training-operator and shells read higher ones as signals.
"""

from __future__ import annotations

from enum import IntEnum

from pydantic import Field

from kinema_api.base import Model, Word
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
    HOST_OUT_OF_MEMORY = 72
    """The process could not allocate host memory (the kernel's OOM killer leaves 137 instead)."""
    INTERRUPTED = 75
    """SIGTERM came; state was saved and the same stage can go on."""

    @property
    def retryable(self) -> bool:
        """Whether running the stage again can help without a change by the user."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {Exit.INTERNAL, Exit.STORAGE, Exit.COMMUNICATION, Exit.STALLED, Exit.HOST_OUT_OF_MEMORY, Exit.INTERRUPTED}
)


class FailureClass(Word):
    """What kind of failure ended an attempt; the operator's table says what follows from each."""

    INFRASTRUCTURE = "Infrastructure"
    """A node was lost, a pod evicted, an image not pulled, a name not resolved, a child deleted."""
    PREEMPTED = "Preempted"
    """The scheduler or a queue took the nodes for something of higher priority."""
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    """The pod used more memory than its limit."""
    DEVICE_OUT_OF_MEMORY = "DeviceOutOfMemory"
    """The accelerator's memory did not suffice."""
    USER = "UserError"
    """The job's spec or what it names is wrong."""
    DATA = "DataError"
    """The dataset or the weights are not usable."""
    NUMERICS = "Numerics"
    """The loss is not finite."""
    STORAGE = "Storage"
    """The workspace cannot be read or written, or is full."""
    STALLED = "Stalled"
    """Nothing moved for too long."""
    COMMUNICATION = "Communication"
    """A collective or the rendezvous failed, and no member says why."""
    TIMEOUT = "Timeout"
    """The attempt took longer than its stage's timeout."""
    INTERNAL = "Internal"
    """A bug, or something that nobody could name."""


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
    pins: dict[str, str] = Field(default_factory=dict)
    """check only: what a moving name stood for, for instance `{"weights": "<commit>"}`."""
    seconds: dict[str, int] = Field(default_factory=dict)
    """What the stage's time went to, by the fields of `job.Seconds`; those that it knows."""
    stacks: str | None = None
    """Address of the stacks of all threads, when it stalled."""
    log_tail: str = ""
    """The last lines of its log, when it failed."""

    def encode(self) -> bytes:
        """The JSON that goes into the termination log; first the log's tail, then the message is cut until it fits."""
        fitting = self
        for field in ("log_tail", "message"):
            fitting = fitting._shortened(field)
        return fitting._json()

    def _json(self) -> bytes:
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True).encode()

    def _shortened(self, field: str) -> Termination:
        """One text cut so far that the whole fits; a log keeps its end, a sentence its beginning."""
        text, excess = getattr(self, field), len(self._json()) - TERMINATION_LIMIT
        low, high = 0, len(text)
        if excess <= 0:
            return self
        while low < high:
            keep = (low + high + 1) // 2
            cut = self.model_copy(update={field: _cut(field, text, keep)})
            low, high = (keep, high) if len(cut._json()) <= TERMINATION_LIMIT else (low, keep - 1)
        return self.model_copy(update={field: _cut(field, text, low)})


def _cut(field: str, text: str, keep: int) -> str:
    if field == "log_tail":
        return text[len(text) - keep :]
    return text[:keep].rstrip() + "..." if keep else ""
