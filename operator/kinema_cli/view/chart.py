# SPDX-License-Identifier: Apache-2.0
"""Numbers over steps as a chart of text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotext  # type: ignore[import-untyped]

_LEAST = 30
_HEIGHT = 16
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One number over the steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]

    @property
    def smooth(self) -> list[float]:
        """Its moving average: noise of single steps hides the trend."""
        share, found, weight = 2 / (max(1, len(self.values) // 20) + 1), 0.0, 0.0
        smoothed = []
        for value in self.values:
            found, weight = found + share * (value - found), weight + share * (1 - weight)
            smoothed.append(found / weight)
        return smoothed


def chart(series: Series, *, title: str, width: int = 80, height: int = _HEIGHT) -> list[str]:
    """A chart of one number: its points, and their moving average."""
    if len(series.values) < 2:
        told = [f"{step}: {value:.4g}" for step, value in zip(series.steps, series.values, strict=True)]
        return [f"{title}: too few steps for a chart", *told]
    figure = plotext.figure
    figure.clear()
    figure.plot_size(max(_LEAST, width - 2), height)
    figure.draw(figure.signal(list(series.steps), series.smooth, marker="braille").lines())
    figure.title(title)
    figure.label("step", "x")
    figure.ruler("x").ticks(*_ticks(series.steps))
    drawn = figure.build().string(colorless=True)
    lines = [line.rstrip() for line in drawn.splitlines()]
    return [*lines, summary(series)]


def _ticks(steps: Sequence[int]) -> tuple[list[int], list[str]]:
    """Whole steps along the axis: left to itself the chart has fractions of them."""
    first, last = min(steps), max(steps)
    places = sorted({first + (last - first) * part // _TICKS for part in range(_TICKS + 1)})
    return places, [str(place) for place in places]


def summary(series: Series) -> str:
    """First, least and last value."""
    least = min(range(len(series.values)), key=lambda index: series.values[index])
    told = [("", 0), ("least ", least), ("last ", len(series.values) - 1)]
    parts = [f"{word}{series.values[index]:.4g} at step {series.steps[index]}" for word, index in told]
    return f"{series.name} {', '.join(parts)}"
