# SPDX-License-Identifier: Apache-2.0
"""Draws what a Prometheus answers to each panel: one picture a dashboard, laid out as Grafana lays it out.

It shows whether the queries say what they should; the colours and controls are Grafana's own affair.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import dates
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from kinema_dashboards.boards import Board, Panel, Query, Shape
from kinema_dashboards.live import Prometheus, Series, Span
from kinema_dashboards.queries import VARIABLE, filled

COLUMNS = 24
WIDTH, UNIT = 15.0, 0.32
"""Inches of a sheet, and of one unit of a panel's height."""
DPI = 72
HEADING = 0.8
TICKS = (0.1, 0.5, 0.9)
"""Where the time is written, as shares of the span."""
NAMED = 8
"""Series that have a place in a legend."""
NOTHING = "no data"
COLOURS = 96
"""Of the picture; fewer make smaller files."""


def human(value: float, unit: str) -> str:
    """A number as Grafana would write it, roughly."""
    if not math.isfinite(value):
        return str(value)
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return _seconds(value)
    if unit == "bytes":
        return _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))
    if unit in ("short", "flops"):
        return _scaled(value, 1000.0, ("", "K", "M", "G", "T", "P")) + ("FLOP/s" if unit == "flops" else "")
    text = f"{value:.2e}" if unit == "sci" or 0 < abs(value) < 1e-3 else f"{value:.4g}"
    return text + {"ops": "/s", "reqps": "/s", "wps": "/s", "h": " h"}.get(unit, "")


def _seconds(value: float) -> str:
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} s" if abs(value) >= 1 or value == 0 else f"{1000 * value:.3g} ms"


def _scaled(value: float, base: float, names: Sequence[str]) -> str:
    power = 0
    while abs(value) >= base and power < len(names) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {names[power]}".strip()


def legend(query: Query, labels: Mapping[str, str]) -> str:
    """The name of a series."""
    text = query.legend
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text or ", ".join(value for name, value in labels.items() if name != "__name__")


def rows(board: Board) -> Iterator[tuple[str, float, list[tuple[Panel, int, float]]]]:
    """Each row's title and top, and its panels with their column and top, in units of height."""
    top = 0.0
    for row in board.rows:
        placed, column, line, tallest = [], 0, top + HEADING, 0
        for panel in row.panels:
            if column + panel.width > COLUMNS:
                column, line, tallest = 0, line + tallest, 0
            placed.append((panel, column, line))
            column, tallest = column + panel.width, max(tallest, panel.height)
        yield row.title, top, placed
        top = line + tallest


def draw(board: Board, prometheus: Prometheus, span: Span, values: Mapping[str, str], *, caption: str) -> bytes:
    """The sheet of a dashboard, a PNG."""
    placed = list(rows(board))
    height = max(line + panel.height for _, _, panels in placed for panel, _, line in panels) + 1.2
    figure = Figure(figsize=(WIDTH, height * UNIT), dpi=DPI, facecolor="white")
    figure.text(
        0.01, 1 - 0.35 / height, f"{board.title}   {_shown(board, values)}", fontsize=13, weight="bold", va="top"
    )
    figure.text(0.99, 1 - 0.35 / height, caption, fontsize=8, color="grey", ha="right", va="top")
    for title, top, panels in placed:
        figure.text(0.01, 1 - (top + 1.75) / height, title, fontsize=10, color="#444444", weight="bold", va="center")
        for panel, column, line in panels:
            left, bottom = column / COLUMNS, 1 - (line + 1.2 + panel.height) / height
            box = (left + 0.035, bottom + 1.0 / height, panel.width / COLUMNS - 0.045, (panel.height - 2.2) / height)
            if panel.shape is Shape.BARS:
                box = (box[0] + 0.045, box[1], box[2] - 0.045, box[3])
            axes = figure.add_axes(box)
            axes.set_title(panel.title, fontsize=8, loc="left", pad=3)
            _DRAWN[panel.shape](axes, panel, _results(panel, prometheus, span, values), span)
    return _png(figure)


def _shown(board: Board, values: Mapping[str, str]) -> str:
    chosen = [f"{variable.label}: {values.get(variable.name, 'all')}" for variable in board.variables]
    return "   ".join(text for text in chosen if not text.endswith(".+"))


Results = list[tuple[Query, list[Series]]]
_NOW = frozenset({Shape.BARS, Shape.TABLE})
"""Shapes that ask for the end of the span alone, as they do in Grafana; a number is the last one within it."""


def _results(panel: Panel, prometheus: Prometheus, span: Span, values: Mapping[str, str]) -> Results:
    found: Results = []
    for query in panel.queries:
        expr = filled(query.expr, values)
        assert VARIABLE.search(expr) is None
        if panel.shape in _NOW:
            found.append((query, prometheus.now(expr, at=span.end)))
        else:
            found.append((query, prometheus.over(expr, span)))
    return found


def _times(series: Series) -> tuple[list[datetime], list[float]]:
    return [datetime.fromtimestamp(at, tz=UTC) for at, _ in series.points], [value for _, value in series.points]


def _nothing(axes: Any) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, NOTHING, ha="center", va="center", fontsize=9, color="grey", transform=axes.transAxes)


def _lines(axes: Any, panel: Panel, results: Results, span: Span) -> None:
    named = [(legend(query, series.labels), series) for query, found in results for series in found]
    if not named:
        _nothing(axes)
        return
    if panel.shape is Shape.STACK:
        moments = sorted({at for _, series in named for at, _ in series.points})
        heights = [[dict(series.points).get(at, 0.0) for at in moments] for _, series in named]
        axes.stackplot([datetime.fromtimestamp(at, tz=UTC) for at in moments], heights, alpha=0.6,
                       labels=[name for name, _ in named])  # fmt: skip
    else:
        for name, series in named:
            axes.plot(*_times(series), linewidth=1, label=name)
    shown = axes.get_ylim()
    for threshold in panel.thresholds:
        axes.axhline(threshold.value, color=threshold.colour, linewidth=0.7, linestyle="--")
    # A threshold that is far away must not press the lines together.
    axes.set_ylim(shown)
    if panel.logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=panel.at_least, top=panel.at_most)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value, panel.unit)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    _timed(axes, span)
    if len(named) <= NAMED:
        axes.legend(fontsize=5.5, loc="upper left", ncols=2 if len(named) > 4 else 1, framealpha=0.6)


def _timed(axes: Any, span: Span) -> None:
    axes.set_xlim(*(datetime.fromtimestamp(at, tz=UTC) for at in (span.start, span.end)))
    axes.set_xticks([datetime.fromtimestamp(span.start + share * (span.end - span.start), tz=UTC) for share in TICKS])
    clock = "%H:%M" if span.end - span.start > 600 else "%H:%M:%S"
    axes.xaxis.set_major_formatter(dates.DateFormatter(clock))  # type: ignore[no-untyped-call]
    axes.tick_params(labelsize=6)
    axes.grid(visible=True, linewidth=0.3)


def _number(axes: Any, panel: Panel, results: Results, _: Span) -> None:
    axes.axis("off")
    last = [(series.points[-1], legend(query, series.labels)) for query, found in results for series in found]
    # What was said last comes first: series that have ended are there too.
    named = [(name, value) for (_, value), name in sorted(last, key=lambda item: -item[0][0])]
    if not named:
        _nothing(axes)
        return
    for number, (name, value) in enumerate(named[:3]):
        reached = [step for step in panel.thresholds if value >= step.value]
        text, colour = human(value, panel.unit), reached[-1].colour if reached else "black"
        if value in panel.names:
            text = panel.names[int(value)][0]
        place = (number + 0.5) / len(named[:3])
        axes.text(place, 0.55, text, ha="center", va="center", fontsize=13, color=colour, transform=axes.transAxes)
        axes.text(place, -0.1, name, ha="center", va="center", fontsize=6, color="grey", transform=axes.transAxes)


def _bars(axes: Any, panel: Panel, results: Results, _: Span) -> None:
    named = [(legend(query, series.labels), series.points[-1][1]) for query, found in results for series in found]
    if not named:
        _nothing(axes)
        return
    named.sort(key=lambda item: item[1])
    bars = axes.barh([name for name, _ in named], [value for _, value in named], alpha=0.7)
    axes.bar_label(bars, [human(value, panel.unit) for _, value in named], fontsize=6, padding=2)
    axes.margins(x=0.15)
    axes.tick_params(labelsize=6)
    axes.tick_params(axis="x", labelbottom=False)


def _table(axes: Any, panel: Panel, results: Results, _: Span) -> None:
    axes.axis("off")
    cells: dict[tuple[str, ...], list[str]] = {}
    first = results[0][1]
    if not first:
        _nothing(axes)
        return
    # A label that is empty is none: a job that waits has no stage.
    there = {name for series in first for name in series.labels}
    labels = [name for name in ("namespace", "vtj", "model", "phase", "stage") if name in there]
    for series in first:
        key = (series.labels["namespace"], series.labels["vtj"])
        cells[key] = [series.labels.get(name, "") for name in labels] + [""] * (len(results) - 1)
    units = list(panel.columns.values())[1:]
    for number, ((__, found), unit) in enumerate(zip(results[1:], units, strict=True)):
        for series in found:
            key = (series.labels["namespace"], series.labels["vtj"])
            if key in cells:
                cells[key][len(labels) + number] = human(series.points[-1][1], unit)
    head = [*(name.replace("vtj", "job") for name in labels), *list(panel.columns)[1:]]
    table = axes.table(cellText=list(cells.values()), colLabels=head, loc="upper center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(7)


def _states(axes: Any, panel: Panel, results: Results, span: Span) -> None:
    found = [series for _, items in results for series in items]
    if not found:
        _nothing(axes)
        return
    colours = {"text": "lightgrey", "super-light-green": "#c8e6c9", "blue": "tab:blue", "green": "tab:green"}
    for number, series in enumerate(found):
        times, values = _times(series)
        for value, (name, colour) in panel.names.items():
            there = [known == value for known in values]
            axes.fill_between(times, number - 0.4, number + 0.4, where=there, step="post", linewidth=0,
                              color=colours.get(colour, colour), label=name if number == 0 else None)  # fmt: skip
    axes.set_yticks(range(len(found)), [series.labels.get("stage", "") for series in found])
    _timed(axes, span)
    axes.legend(fontsize=6, loc="upper right", ncols=5)


_DRAWN = {
    Shape.LINES: _lines,
    Shape.STACK: _lines,
    Shape.NUMBER: _number,
    Shape.BARS: _bars,
    Shape.TABLE: _table,
    Shape.STATES: _states,
}


def _png(figure: Figure) -> bytes:
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(small, format="PNG", optimize=True)
    return small.getvalue()


def write(
    boards: Sequence[tuple[Board, Span]],
    prometheus: Prometheus,
    values: Mapping[str, str],
    folder: Path,
    *,
    caption: str,
) -> list[Path]:
    """A sheet of each dashboard over a time of its own, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for board, span in boards:
        path = folder / f"{board.uid}.png"
        path.write_bytes(draw(board, prometheus, span, values, caption=caption))
        written.append(path)
    return written
