# SPDX-License-Identifier: Apache-2.0
"""A job on the screen: a table that lives on a terminal, one line a change anywhere else."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kinema_api.names import Stage
from kinema_api.status import StageState
from kinema_demo.follow import Follower, Gone, News, Step
from kinema_demo.job import JobView, StageView
from kinema_demo.steps import duration

_MARKS = {
    StageState.PENDING.value: ("·", "dim"),
    StageState.RUNNING.value: ("▶", "cyan"),
    StageState.SUCCEEDED.value: ("✓", "green"),
    StageState.SKIPPED.value: ("↷", "yellow"),
    StageState.FAILED.value: ("✗", "red"),
}
_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
_PLAIN_STEPS = 20
"""Lines that a run without a terminal prints about training, at most."""


def sparkline(values: Sequence[float], *, width: int = _WIDTH) -> str:
    """The values as one line of blocks; each block is the mean of its share."""
    if not values:
        return ""
    count = min(width, len(values))
    bounds = [round(part * len(values) / count) for part in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


class Screen:
    """What has been seen of a job, and how it looks."""

    def __init__(self, *, now: datetime | None = None) -> None:
        self.job: JobView | None = None
        self.losses: dict[int, float] = {}
        self.total: int | None = None
        self._now = now

    def take(self, news: News) -> None:
        """Add a piece of news."""
        if isinstance(news, JobView):
            self.job = news
        elif isinstance(news, Step):
            self.losses[news.step] = news.loss
            self.total = news.total or self.total

    def __rich__(self) -> RenderableType:
        """The table, and the loss below it."""
        if self.job is None:
            return Text("waiting for the job ...", style="dim")
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for stage in self.job.stages:
            mark, style = _MARKS.get(stage.state, ("?", ""))
            table.add_row(
                Text(mark, style=style), Text(stage.name, style=style), self._time(stage), self._detail(stage)
            )
        head = Text.assemble((f"vtj/{self.job.name} ", "bold"), self.job.phase)
        if self.job.restarts:
            head.append(f", {self.job.restarts} restarts", style="yellow")
        return Group(head, table, *self._loss())

    def _time(self, stage: StageView) -> Text:
        if stage.seconds is not None:
            return Text(duration(stage.seconds), style="dim")
        if stage.started is not None:
            now = self._now or datetime.now(UTC)
            return Text(duration(max(0.0, (now - stage.started).total_seconds())))
        return Text("")

    def _detail(self, stage: StageView) -> Text:
        if self.job is None or stage.name != self.job.current:
            return Text(_said(stage), style="dim")
        percentage = self.job.percentage
        if stage.name == Stage.TRAIN.value and self.losses and self.total:
            percentage = 100 * max(self.losses) // self.total
        if not percentage:
            return Text(stage.message or stage.failure, style="dim" if stage.message else "yellow")
        filled = percentage * 24 // 100
        text = Text.assemble(("━" * filled, "cyan"), ("━" * (24 - filled), "dim"), f" {percentage:3d} %")
        if self.job.eta:
            text.append(f"  {self.job.eta} left", style="dim")
        return text

    def _loss(self) -> list[Text]:
        if not self.losses:
            return []
        ordered = [self.losses[step] for step in sorted(self.losses)]
        last = max(self.losses)
        of = f"/{self.total}" if self.total else ""
        return [
            Text.assemble(("loss ", "bold"), (sparkline(ordered), "cyan")),
            Text(f"     {ordered[0]:.4f} at the first step, {ordered[-1]:.4f} at step {last}{of}", style="dim"),
        ]


def _said(stage: StageView) -> str:
    if stage.message:
        return stage.message
    return ", ".join(f"{count} {name}" for name, count in (stage.counts or {}).items())


class Plain:
    """The same as lines, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._states: dict[str, tuple[str, int]] = {}
        self._failed: dict[str, int] = {}
        self._told = -1

    def take(self, news: News) -> None:
        """Print what is new."""
        if isinstance(news, JobView):
            for stage in news.stages:
                if stage.failed > self._failed.get(stage.name, 0):
                    self._failed[stage.name] = stage.failed
                    self._print(f"{stage.name}: failed, {stage.failure}")
                key = (stage.state, stage.attempts)
                if stage.state != StageState.PENDING.value and self._states.get(stage.name) != key:
                    self._states[stage.name] = key
                    self._print(f"{stage.name}: {stage.state.lower()}{self._more(stage)}")
        elif isinstance(news, Step):
            share = news.step * _PLAIN_STEPS // news.total if news.total else news.step // 10
            if share != self._told:
                self._told = share
                of = f"/{news.total}" if news.total else ""
                self._print(f"train: step {news.step}{of}, loss {news.loss:.4f}")

    @staticmethod
    def _more(stage: StageView) -> str:
        said = "" if stage.state == StageState.FAILED.value else _said(stage)
        attempt = f" (attempt {stage.attempts})" if stage.attempts > 1 else ""
        return f"{attempt}: {said}" if said else attempt

    def _print(self, line: str) -> None:
        elapsed = duration(time.monotonic() - self._started)
        self._console.print(f"{elapsed:>8}  {line}", markup=False, highlight=False, soft_wrap=True)


def show(follower: Follower, console: Console) -> JobView | None:
    """Follow the job to its end; its last state, None when it was deleted."""
    screen = Screen()
    if console.is_terminal:
        with Live(screen, console=console, refresh_per_second=4):
            _drain(follower, screen)
        return screen.job if screen.job and screen.job.ended else None
    plain = Plain(console)
    for news in follower.news(patience=3600):
        if news is not None:
            screen.take(news)
            plain.take(news)
    return screen.job if screen.job and screen.job.ended else None


def _drain(follower: Follower, screen: Screen) -> None:
    for news in follower.news(patience=3600):
        if news is not None and not isinstance(news, Gone):
            screen.take(news)
