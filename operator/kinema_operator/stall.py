# SPDX-License-Identifier: Apache-2.0
"""Whether a running attempt still moves, by its pushed progress and, where that is old, by the pods' log. Pure.

The pod's own watchdog finds a hang first and knows more about it; this is for a pod whose watchdog hangs too. So a
stall is called only when both sources are there and both are old: what cannot be seen harms nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kinema_api.names import Stage
from kinema_api.settings import StageSettings
from kinema_api.status import Attempt, AttemptState, ConditionStatus, Progress
from kinema_operator.status import parse_time

DEFAULT_LIMIT = 1800.0
"""Seconds without movement that the watchdog of a stage takes for a hang when it knows no better."""
PATIENCE = 2.0
"""How many times the watchdog's limit must pass here."""
LIMIT_METRIC = "stall_limit_seconds"
"""The limit that the watchdog has found from the run's own step time."""
LOOK_AGAIN = 60.0
"""Seconds until a log that could not be read is tried again."""


@dataclass(frozen=True, slots=True)
class Movement:
    """What is known of an attempt's movement."""

    status: ConditionStatus
    reason: str
    message: str
    look_again: float | None = None
    """Seconds after which this may be different."""

    @property
    def stalled(self) -> bool:
        """Nothing moves, by all that is known."""
        return self.status is ConditionStatus.FALSE


def limit_of(settings: StageSettings, progress: Progress | None) -> float:
    """Seconds without movement after which the operator calls a stall."""
    measured = number(progress, LIMIT_METRIC)
    return PATIENCE * (settings.stall_seconds or measured or DEFAULT_LIMIT)


def number(progress: Progress | None, name: str) -> float | None:
    """A metric that the stage pushed, when it is a positive number."""
    try:
        value = float(progress.metrics[name]) if progress is not None else 0.0
    except (KeyError, ValueError):
        return None
    return value if 0 < value < float("inf") else None


def progress_of(attempt: Attempt, stage: Stage, progress: Progress | None) -> Progress | None:
    """The progress that this very attempt pushed; None when it is of another one, or was never sent."""
    fits = progress is not None and (progress.stage, progress.attempt) == (stage, attempt.number)
    return progress if fits and progress is not None and progress.updated_at else None


def moved_at(attempt: Attempt, progress: Progress | None) -> datetime | None:
    """When an attempt's own progress was pushed last, at the earliest when its pods ran; None: it cannot be known."""
    if attempt.state is not AttemptState.RUNNING or attempt.running_at is None or progress is None:
        return None
    return max(parse_time(progress.updated_at), parse_time(attempt.running_at))


def movement(
    *,
    attempt: Attempt,
    running: bool,
    progress: Progress | None,
    last_log: datetime | None,
    limit: float,
    now: datetime,
) -> Movement:
    """Whether an attempt moves.

    Args:
        attempt: the attempt.
        running: all its pods run.
        progress: what this attempt pushed last.
        last_log: the newest log line of its pods; None: unknown.
        limit: seconds, see `limit_of`.
        now: the time.
    """
    if not running:
        return Movement(ConditionStatus.UNKNOWN, "NotRunning", "not all pods of the attempt run")
    pushed = moved_at(attempt, progress)
    if pushed is None:
        return Movement(ConditionStatus.UNKNOWN, "NoProgressData", "the stage has not said how far it is")
    left = limit - (now - pushed).total_seconds()
    if left > 0:
        return Movement(ConditionStatus.TRUE, "ProgressPushed", "the stage says how far it is", left)
    if last_log is None:
        sentence = "pushed progress is old, and the pods' log cannot be read"
        return Movement(ConditionStatus.UNKNOWN, "NoLogData", sentence, LOOK_AGAIN)
    left = limit - (now - last_log).total_seconds()
    if left > 0:
        return Movement(ConditionStatus.TRUE, "LogMoves", "pushed progress is old, but the pods' log moves", left)
    sentence = f"neither pushed progress nor the pods' log has moved for {limit:.0f} s"
    return Movement(ConditionStatus.FALSE, "Stalled", sentence)
