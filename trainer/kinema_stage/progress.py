# SPDX-License-Identifier: Apache-2.0
"""Progress of a stage: a log line or a bar, metrics on a port, and posts to the server."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING

from kinema_api.names import METRICS_PORT, Stage
from kinema_api.progress import Metric, TrainerStatus
from kinema_stage import logs
from kinema_stage.gauges import Gauges, Value
from kinema_stage.ledger import Activity, Ledger, Spent
from kinema_stage.poster import Poster, Target
from kinema_stage.watchdog import Watchdog

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

logger = logging.getLogger(__name__)

NO_METRICS: Mapping[str, Value] = MappingProxyType({})
NO_RANKS: Mapping[str, Sequence[float]] = MappingProxyType({})
ENV_METRICS_PORT = "KINEMA_METRICS_PORT"


RESUMED_STAGES = frozenset({Stage.PREPARE, Stage.FEATURES, Stage.SAMPLE})
"""Those whose finished units outlive the process; others begin again."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the attempt's time went to, and how long nothing may move."""

    spent: Spent
    stall_limit: float | None = None

    def metrics(self) -> dict[str, Value]:
        """The numbers that the operator reads."""
        limit = self.stall_limit
        known = {} if limit is None or math.isinf(limit) else {"stall_limit_seconds": round(limit)}
        return {**self.spent.metrics(), **known}


class Progress:
    """Tells people and programs where a stage stands. Nothing is opened before the first report.

    Each report is a move for the watchdog, if there is one. The time is accounted for as start until the first report
    and as work from then on, unless `account` is replaced by something that knows better.

    Args:
        stage: the stage that speaks.
        primary: whether this process speaks for the stage: only then it posts, and opens the metrics port.
        environment: where the server's address and the metrics port come from.
    """

    def __init__(self, stage: Stage, *, primary: bool = True, environment: Mapping[str, str] = os.environ) -> None:
        self._stage = stage
        self._primary = primary
        self._environment = environment
        self._poster: Poster | None = None
        self._gauges: Gauges | None = None
        self._bar: _Bar | None = None
        self._first: tuple[float, int] | None = None
        self._last: TrainerStatus | None = None
        self._ledger = Ledger()
        self._watchdog: Watchdog | None = None
        self.account: Callable[[], Account] = self._own_account
        self.wished: Callable[[str], None] = lambda text: None
        """Hears, in another thread, of the wish to profile that the server passes on; again with each answer."""

    def watched(self, watchdog: Watchdog) -> None:
        """From now on each report is a move."""
        self._watchdog = watchdog

    def moved(self) -> None:
        """The stage lives, though it has nothing to report: it waits for another, or moves a part of a unit."""
        if self._watchdog is not None:
            self._watchdog.moved(work=False)

    def report(
        self,
        *,
        done: int,
        total: int,
        eta_seconds: float | None = None,
        metrics: Mapping[str, Value] = NO_METRICS,
        ranks: Mapping[str, Sequence[float]] = NO_RANKS,
    ) -> None:
        """Say how far the stage is.

        Args:
            done: finished units, steps for train.
            total: all units.
            eta_seconds: time left; taken from the pace since the first report when left out.
            metrics: further numbers by name, for instance loss.
            ranks: numbers of every process by rank, for instance memory_peak_bytes; for Prometheus alone.
        """
        first = self._first is None
        if self._first is None:
            self._open(done)
            self._ledger.switch(Activity.PRODUCTIVE)
        assert self._first is not None
        if self._watchdog is not None:
            self._watchdog.moved(work=done > self._first[1])
        eta = self._eta(done, total) if eta_seconds is None else eta_seconds
        eta = eta if eta is None or math.isfinite(eta) else None
        self._show(done=done, total=total, eta=eta, metrics=metrics)
        metrics = {**metrics, **self.account().metrics()}
        if self._gauges is not None:
            self._gauges.set(done=done, total=total, eta=eta, metrics=metrics, ranks=ranks)
        self._last = _status(stage=self._stage, done=done, total=total, eta=eta, metrics=metrics)
        if self._poster is not None:
            self._poster.put(self._last, urgent=first)

    def close(self, *, success: bool) -> None:
        """End it; after success the server hears of 100 %."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._gauges is not None:
            self._gauges.close()
            self._gauges = None
        if self._poster is not None:
            if success and self._last is not None:
                end = {"progress_percentage": 100, "estimated_remaining_seconds": 0, "last_updated_time": _now()}
                self._poster.put(self._last.model_copy(update=end), urgent=True)
            self._poster.close()
            self._poster = None

    def _own_account(self) -> Account:
        if self._stage in RESUMED_STAGES:
            self._ledger.saved(self._ledger.spent().productive)
        return Account(spent=self._ledger.spent(), stall_limit=None if self._watchdog is None else self._watchdog.limit)

    def _open(self, done: int) -> None:
        self._first = (time.monotonic(), done)
        if not self._primary:
            return
        target = Target.from_environment(self._environment)
        self._poster = Poster(target, wished=lambda text: self.wished(text)) if target is not None else None
        self._bar = _Bar.on_terminal(self._stage)
        port = int(self._environment.get(ENV_METRICS_PORT, METRICS_PORT))
        self._gauges = Gauges.serve(self._stage, port, otherwise=ENV_METRICS_PORT)

    def _eta(self, done: int, total: int) -> float | None:
        assert self._first is not None
        started, before = self._first
        if done <= before:
            return None
        return (time.monotonic() - started) / (done - before) * max(0, total - done)

    def _show(self, *, done: int, total: int, eta: float | None, metrics: Mapping[str, Value]) -> None:
        if self._bar is not None:
            self._bar.update(done=done, total=total, metrics=metrics)
            return
        fields: dict[str, Value] = {"step": done, "totalSteps": total}
        if eta is not None:
            fields["etaSeconds"] = round(eta)
        logger.info("", extra={logs.FIELDS: {**fields, **metrics}})


def _now() -> datetime:
    return datetime.now(tz=timezone.utc)


def _status(*, stage: Stage, done: int, total: int, eta: float | None, metrics: Mapping[str, Value]) -> TrainerStatus:
    values: dict[str, Value] = {"stage": stage.value, "step": done, "total_steps": total, **metrics}
    return TrainerStatus(
        progress_percentage=min(99, max(0, 100 * done // total)) if total > 0 else 0,
        estimated_remaining_seconds=None if eta is None else max(0, round(eta)),
        metrics=[Metric(name=name[:64], value=_text(value)) for name, value in list(values.items())[:256]],
        last_updated_time=_now(),
    )


def _text(value: Value) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text[:64] or "-"


class _Bar:
    """A progress bar for people."""

    def __init__(self, stage: Stage, bar: RichProgress) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task(stage.value, total=None, numbers="")
        bar.start()

    @classmethod
    def on_terminal(cls, stage: Stage) -> _Bar | None:
        """A bar if stdout is a terminal and rich is installed."""
        if not sys.stdout.isatty():
            return None
        try:
            from rich import progress as rich
        except ImportError:
            return None
        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[numbers]}"),
        )
        return cls(stage, rich.Progress(*columns))

    def update(self, *, done: int, total: int, metrics: Mapping[str, Value]) -> None:
        """Move the bar."""
        numbers = "  ".join(f"{name} {_text(value)}" for name, value in metrics.items())
        self._bar.update(self._task, completed=done, total=total, numbers=numbers)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()
