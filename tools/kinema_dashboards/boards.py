# SPDX-License-Identifier: Apache-2.0
"""What a dashboard is made of, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kinema_api.base import Word


class Shape(Word):
    """How a panel draws its queries."""

    LINES = "lines"
    STACK = "stack"
    NUMBER = "number"
    BARS = "bars"
    TABLE = "table"
    STATES = "states"


@dataclass(frozen=True, slots=True)
class Query:
    """A query and how its series are named."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Threshold:
    """From this value on a number has this colour."""

    value: float
    colour: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel."""

    title: str
    text: str
    unit: str
    """Of Grafana: s, percentunit, bytes, short ..."""
    queries: tuple[Query, ...]
    shape: Shape = Shape.LINES
    width: int = 8
    """Of 24."""
    height: int = 7
    thresholds: tuple[Threshold, ...] = ()
    names: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """What numbers stand for, with a colour."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Title of each query's column in a table, and its unit."""
    logarithmic: bool = False
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of the dashboard."""

    name: str
    label: str
    text: str
    query: str
    """A `label_values` of Prometheus."""
    many: bool = True


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    text: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    period: str = "6h"
    links: Mapping[str, str] = field(default_factory=dict)
    """Other dashboards: title and uid."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them."""
        return tuple(panel for row in self.rows for panel in row.panels)
