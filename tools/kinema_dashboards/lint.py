# SPDX-License-Identifier: Apache-2.0
"""The rules of Grafana's dashboard-linter, over the JSON of a dashboard; each gives sentences about what breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from kinema_dashboards.build import SOURCE
from kinema_dashboards.inventory import known
from kinema_dashboards.queries import RATE_INTERVAL, names, parsed, selectors

Dashboard = dict[str, Any]
LABEL_VALUES = re.compile(r"label_values\((?:(?P<expr>.+),\s*)?\w+\)")
_ROW = "row"
_RATE = re.compile(r"\bi?rate\([^()]*\[([^\]]+)\]")
_COUNTED = re.compile(r"\b(?:i?rate|increase)\(\s*(\w+_total)\b")

TOTALS = {
    "kinema_job_restarts_total": "the number of restarts is the news, not their rate",
    "kinema_job_accelerator_seconds_total": "the ledger of one job is read as a sum",
}
"""Counters that are shown as they are, and why."""


def panels(board: Dashboard) -> Iterator[Dashboard]:
    """Every panel that shows something."""
    for panel in board["panels"]:
        if panel["type"] != _ROW:
            yield panel
        yield from panel.get("panels") or ()


def targets(board: Dashboard) -> Iterator[tuple[str, str]]:
    """Every query with the title of its panel."""
    for panel in panels(board):
        for target in panel.get("targets") or ():
            yield panel["title"], target["expr"]


def variables(board: Dashboard, kind: str) -> list[Dashboard]:
    """The choices of a kind."""
    return [variable for variable in board["templating"]["list"] if variable["type"] == kind]


def template_datasource(board: Dashboard) -> Iterator[str]:
    """One variable chooses the data source, and it chooses a Prometheus."""
    found = variables(board, "datasource")
    if [(variable["name"], variable["query"]) for variable in found] != [("datasource", "prometheus")]:
        yield "there must be one variable `datasource` of type prometheus"


def template_refresh(board: Dashboard) -> Iterator[str]:
    """Choices follow the time range."""
    for variable in variables(board, "query"):
        if variable.get("refresh") != 2:
            yield f"${variable['name']} must be read again when the time range changes"


def template_promql(board: Dashboard) -> Iterator[str]:
    """Choices ask for series that there are."""
    for variable in variables(board, "query"):
        match = LABEL_VALUES.fullmatch(variable["query"])
        if match is None:
            yield f"${variable['name']} is no label_values: {variable['query']}"
        elif match["expr"]:
            yield from (f"${variable['name']}: {text}" for text in _unknown(match["expr"]))


def template_job_instance(board: Dashboard) -> Iterator[str]:
    """Where processes are looked at, one chooses which, and each query keeps to the choice."""
    if not any("job=~" in expr for _, expr in targets(board)):
        return
    for name in ("job", "instance"):
        found = [variable for variable in variables(board, "query") if variable["name"] == name]
        if not found or not found[0].get("multi") or found[0].get("allValue") != ".+":
            yield f"there must be a variable ${name} that takes many, whose all is .+"
        for title, expr in targets(board):
            if any(f'{name}=~"${name}"' not in str(text) for text in _chosen(expr)):
                yield f'{title}: {name}=~"${name}" is missing in {expr}'


def _chosen(expr: str) -> list[str]:
    return re.findall(r"\{[^}]*\}", expr) or [expr]


def panel_datasource(board: Dashboard) -> Iterator[str]:
    """Nothing names a data source but by the variable."""
    for panel in panels(board):
        for place in (panel, *(panel.get("targets") or ())):
            if (place.get("datasource") or {}).get("uid") != SOURCE:
                yield f"{panel['title']}: the data source must be {SOURCE}"
    for place in (*variables(board, "query"), *board["annotations"]["list"]):
        if place["datasource"]["uid"] != SOURCE:
            yield f"{place['name']}: the data source must be {SOURCE}"


def panel_words(board: Dashboard) -> Iterator[str]:
    """Each panel has a title, a description, a unit and a query."""
    for panel in panels(board):
        title = panel.get("title") or f"panel {panel.get('id')}"
        if not panel.get("title") or not panel.get("description"):
            yield f"{title}: title or description is missing"
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{title}: the unit is missing"
        if not panel.get("targets"):
            yield f"{title}: there is no query"


def target_promql(board: Dashboard) -> Iterator[str]:
    """Each query can be parsed, and asks for series that there are."""
    for title, expr in targets(board):
        yield from (f"{title}: {text}" for text in _unknown(expr))


def _unknown(expr: str) -> Iterator[str]:
    try:
        parsed(expr)
    except ValueError as error:
        yield f"{expr}: {error}"
        return
    for name in sorted(names(expr) - known() - {"None"}):
        yield f"nobody serves {name}"
    for selector in selectors(expr):
        if selector.name is None and "__name__" not in str(selector):
            yield f"{expr}: a selection without a name"


def target_rate_interval(board: Dashboard) -> Iterator[str]:
    """A rate is taken over an interval that follows the scrape's."""
    for title, expr in targets(board):
        for window in _RATE.findall(expr):
            if window != RATE_INTERVAL:
                yield f"{title}: a rate over {window} instead of {RATE_INTERVAL}"


def target_counter(board: Dashboard) -> Iterator[str]:
    """What only rises is shown as a rate, or an increase."""
    for title, expr in targets(board):
        found = {name for name in names(expr) if name.endswith("_total")}
        for name in sorted(found - set(_COUNTED.findall(expr)) - set(TOTALS)):
            yield f"{title}: {name} is a counter"


def uneditable(board: Dashboard) -> Iterator[str]:
    """Changes belong into the source."""
    if board.get("editable") is not False:
        yield "it must not be editable"


RULES: tuple[Callable[[Dashboard], Iterator[str]], ...] = (
    template_datasource,
    template_refresh,
    template_promql,
    template_job_instance,
    panel_datasource,
    panel_words,
    target_promql,
    target_rate_interval,
    target_counter,
    uneditable,
)
