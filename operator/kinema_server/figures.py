# SPDX-License-Identifier: Apache-2.0
"""Turns what a trainer posts into what people read."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from kinema_api.names import Stage
from kinema_api.progress import TrainerStatus
from kinema_api.status import Progress

METRICS_KEPT = 64
"""The protocol allows 256 metrics, a job's status this many."""

_COLUMNS = ("step", "current_step", "total_steps", "loss")
_INT32_MAX = 2**31 - 1


def progress_of(post: TrainerStatus, *, stage: Stage, attempt: int, received: datetime) -> Progress:
    """The progress of a job, from the last post of its running stage."""
    # transformers' KubeflowCallback says current_step.
    step = _count(post.metric("step") or post.metric("current_step"))
    total = _count(post.metric("total_steps"))
    percentage = post.progress_percentage
    if percentage is None and step is not None and total:
        percentage = max(0, min(99, 100 * step // total))
    eta = post.estimated_remaining_seconds
    eta = None if eta is None else min(eta, _INT32_MAX)
    loss = post.metric("loss")
    return Progress(
        stage=stage,
        attempt=attempt,
        percent="" if percentage is None else f"{percentage}%",
        percentage=percentage or 0,
        step=step,
        total_steps=total,
        loss=None if loss is None else significant(loss),
        eta=None if eta is None else duration(eta),
        eta_seconds=eta,
        metrics=_kept(post),
        updated_at=timestamp(received),
    )


def significant(value: str, *, digits: int = 4) -> str:
    """A number to so many significant digits: 0.1000, 12.35, 1.235e-05; text that is no number as it is."""
    try:
        number = float(value)
    except ValueError:
        return value[:32]
    text = f"{number:#.{digits}g}"
    return text.removesuffix(".")


def duration(seconds: float) -> str:
    """Two units at most: 45s, 3m20s, 3h12m, 2d4h."""
    total = max(0, int(seconds))
    minutes, second = divmod(total, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour}h"
    if hours:
        return f"{hours}h{minute}m"
    if minutes:
        return f"{minutes}m{second}s"
    return f"{second}s"


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment_of(text: str | None) -> datetime | None:
    """The moment of an RFC 3339 text; None when it is none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _count(value: str | None) -> int | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and abs(number) <= _INT32_MAX else None


def _kept(post: TrainerStatus) -> dict[str, str]:
    metrics = {metric.name: metric.value for metric in post.metrics}
    ordered = [name for name in _COLUMNS if name in metrics] + [name for name in metrics if name not in _COLUMNS]
    return {name: metrics[name] for name in ordered[:METRICS_KEPT]}
