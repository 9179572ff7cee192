# SPDX-License-Identifier: Apache-2.0
"""Numbers over steps as a chart of text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotext

from kinema_cli.view.text import plural

_LEAST = 30
_HEIGHT = 16


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
    drawn = figure.build().string(colorless=True)
    lines = [line.rstrip() for line in drawn.splitlines()]
    return [*lines, summary(series)]


def summary(series: Series) -> str:
    """First, least and last value."""
    least = min(range(len(series.values)), key=lambda index: series.values[index])
    return (
        f"{series.name} {series.values[0]:.4g} at step {series.steps[0]}, least {series.values[least]:.4g} at step"
        f" {series.steps[least]}, last {series.values[-1]:.4g} at step {series.steps[-1]}"
        f" ({plural(len(series.values), 'point')})"
    )
