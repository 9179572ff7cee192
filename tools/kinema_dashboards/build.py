# SPDX-License-Identifier: Apache-2.0
"""Makes Grafana's JSON of a board."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models

from kinema_dashboards import fleet, job, operator
from kinema_dashboards.boards import Board, Panel, Query, Shape, Variable

BOARDS = (fleet.BOARD, job.BOARD, operator.BOARD)
SOURCE = "${datasource}"
"""Every query goes to the data source that the reader has chosen."""
REFRESH = "30s"


def _source() -> models.DataSourceRef:
    return models.DataSourceRef(type_val="prometheus", uid=SOURCE)


def _target(query: Query, number: int, *, instant: bool, as_table: bool) -> Any:
    built = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + number)).datasource(_source())
    if query.legend:
        built = built.legend_format(query.legend)
    if as_table:
        built = built.format("table")  # type: ignore[arg-type]
    return built.instant() if instant else built.range()


def _lines(panel: Panel) -> Any:
    built = (
        timeseries.Panel()
        .line_width(1)
        .show_points(shapes.VisibilityMode.NEVER)
        .fill_opacity(25 if panel.shape is Shape.STACK else 5)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
    )
    if panel.shape is Shape.STACK:
        built = built.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL))
    if panel.logarithmic:
        scale = common.ScaleDistributionConfig().type(shapes.ScaleDistribution.LOG).log(10)
        built = built.scale_distribution(scale)
    if panel.thresholds:
        # The name of the SDK's own enumeration changes between its versions.
        built = built.thresholds_style(common.GraphThresholdsStyleConfig().mode("line"))  # type: ignore[arg-type]
    return built


def _number(_: Panel) -> Any:
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"])
    return stat.Panel().reduce_options(reduce).graph_mode(shapes.BigValueGraphMode.AREA)


def _bars(_: Panel) -> Any:
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"])
    return bargauge.Panel().reduce_options(reduce).orientation(shapes.VizOrientation.HORIZONTAL)


def _table(panel: Panel) -> Any:
    built = table.Panel().with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    titles = list(panel.columns)
    hidden = {"Time": True, **{f"Value #{chr(ord('A') + n)}": True for n, title in enumerate(titles) if not title}}
    renamed = {f"Value #{chr(ord('A') + n)}": title for n, title in enumerate(titles) if title}
    options = {"excludeByName": hidden, "indexByName": {}, "renameByName": {**renamed, "vtj": "job"}}
    built = built.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
    for title, unit in panel.columns.items():
        if title:
            built = built.override_by_name(title, [models.DynamicConfigValue(id_val="unit", value=unit)])
    url = "/d/kinema-job?var-namespace=${__data.fields.namespace}&var-vtj=${__data.fields.job}&${__url_time_range}"
    link = [{"title": "The job's dashboard", "url": url}]
    return built.override_by_name("job", [models.DynamicConfigValue(id_val="links", value=link)])


def _states(_: Panel) -> Any:
    return statetimeline.Panel().merge_values(True).row_height(0.8)


_MADE = {
    Shape.LINES: _lines,
    Shape.STACK: _lines,
    Shape.NUMBER: _number,
    Shape.BARS: _bars,
    Shape.TABLE: _table,
    Shape.STATES: _states,
}
_INSTANT = frozenset({Shape.BARS, Shape.TABLE})
_FIRST_COLOUR = "green"


def _panel(panel: Panel) -> Any:
    built = _MADE[panel.shape](panel)
    built = built.title(panel.title).description(panel.text).unit(panel.unit).datasource(_source())
    built = built.span(panel.width).height(panel.height)
    for number, query in enumerate(panel.queries):
        instant, as_table = panel.shape in _INSTANT, panel.shape is Shape.TABLE
        built = built.with_target(_target(query, number, instant=instant, as_table=as_table))
    steps = [models.Threshold(value=None, color=_FIRST_COLOUR)]
    steps += [models.Threshold(value=step.value, color=step.colour) for step in panel.thresholds]
    built = built.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.names:
        named = {
            str(value): models.ValueMappingResult(text=text, color=colour)
            for value, (text, colour) in panel.names.items()
        }
        built = built.mappings([models.ValueMap(options=named)])
    if panel.at_least is not None:
        built = built.min(panel.at_least)
    if panel.at_most is not None:
        built = built.max(panel.at_most)
    return built


def _variable(variable: Variable) -> Any:
    built = (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .description(variable.text)
        .query(variable.query)
        .datasource(_source())
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(variable.many)
        .include_all(variable.many)
    )
    return built.all_value(".+") if variable.many else built


def _links(board: Board) -> list[Any]:
    return [
        dashboard.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/{uid}")
        .keep_time(True)
        .include_vars(True)
        for title, uid in board.links.items()
    ]


def _alerts(board: Board) -> Any:
    """Marks where an alert of ours was firing."""
    chosen = ', vtj="$vtj"' if any(variable.name == "vtj" for variable in board.variables) else ""
    return (
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(_source())
        .enable(True)
        .icon_color("red")
        .expr(f'ALERTS{{alertname=~"Kinema.+", alertstate="firing"{chosen}}}')
    )


def built(board: Board) -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.text)
        .tags(["kinema"])
        .readonly()
        .timezone("browser")
        .refresh(REFRESH)
        .time(f"now-{board.period}", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .links(_links(board))
        .annotation(_alerts(board))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made = made.with_panel(_panel(panel))
    found: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for number, panel in enumerate(found["panels"], start=1):
        panel["id"] = number
    return found


def text(board: Board) -> str:
    """The file."""
    return json.dumps(built(board), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
