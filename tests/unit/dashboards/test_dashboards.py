# SPDX-License-Identifier: Apache-2.0
"""The committed dashboards, rules and pages: up to date, by the linter's rules, and about metrics that there are."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kinema_dashboards import build, files, inventory, lint
from kinema_dashboards.alerts import ALERTS
from kinema_dashboards.queries import filled, names, parsed
from kinema_dashboards.rules import RECORDINGS
from typer.testing import CliRunner

from kinema_api.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_STAGE
from kinema_cli.__main__ import app

pytestmark = pytest.mark.unit

CHART = files.ROOT / "charts" / "kinema" / "files"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
FOLDERS = ("charts/kinema/files/dashboards", "charts/kinema/files/rules", "docs/runbooks")
CASES = {board.uid: build.built(board) for board in build.BOARDS}


def test_what_is_committed_is_what_is_made() -> None:
    assert files.stale() == [], "run tools/dashboards"


def test_a_stale_file_is_written_and_one_that_nobody_makes_goes(tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    assert set(files.write(tmp_path)) == set(files.made())
    assert files.stale(tmp_path) == []
    (tmp_path / "docs" / "metrics.md").write_text("old")
    (tmp_path / "docs" / "runbooks" / "Gone.md").write_text("x")
    assert files.write(tmp_path) == ["docs/metrics.md", "docs/runbooks/Gone.md"]
    assert files.stale(tmp_path) == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", lint.RULES, ids=lambda rule: rule.__name__)
def test_a_dashboard_keeps_the_linters_rules(path: Path, rule: Callable[[Any], Any]) -> None:
    assert list(rule(json.loads(path.read_text(encoding="utf-8")))) == []


def _panel(board: dict[str, Any]) -> dict[str, Any]:
    return next(lint.panels(board))


def _expr(text: str) -> Callable[[dict[str, Any]], Any]:
    return lambda board: _panel(board)["targets"][0].update(expr=text)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[dict[str, Any]], Any]]] = {
    "no data source to choose": (lint.template_datasource, lambda board: board["templating"]["list"].pop(0)),
    "a choice that never changes": (
        lint.template_refresh,
        lambda board: board["templating"]["list"][1].update(refresh=1),
    ),
    "a choice among nothing": (
        lint.template_promql,
        lambda board: board["templating"]["list"][1].update(query="label_values(kinema_gone, job)"),
    ),
    "no instance to choose": (lint.template_job_instance, lambda board: board["templating"]["list"].pop()),
    "a query over all instances": (lint.template_job_instance, _expr("sum(kinema_leader)")),
    "a data source by its uid": (lint.panel_datasource, lambda board: _panel(board).update(datasource={"uid": "P18"})),
    "a query with a data source": (
        lint.panel_datasource,
        lambda board: _panel(board)["targets"][0].update(datasource={"uid": "P18"}),
    ),
    "no description": (lint.panel_words, lambda board: _panel(board).update(description="")),
    "no unit": (lint.panel_words, lambda board: _panel(board)["fieldConfig"]["defaults"].pop("unit")),
    "no query": (lint.panel_words, lambda board: _panel(board).update(targets=[])),
    "no PromQL": (lint.target_promql, _expr("sum(kinema_leader")),
    "a metric that nobody serves": (lint.target_promql, _expr("kinema_leaders")),
    "a rate over a fixed time": (lint.target_rate_interval, _expr("sum(rate(kinema_resyncs_total[5m]))")),
    "a bare counter": (lint.target_counter, _expr("sum(kinema_resyncs_total)")),
    "changes in the browser": (lint.uneditable, lambda board: board.update(editable=True)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_rule_sees_what_breaks_it(case: str) -> None:
    rule, change = BROKEN[case]
    board = copy.deepcopy(CASES["kinema-operator"])
    assert list(rule(board)) == []
    change(board)
    assert list(rule(board)) != []


@pytest.mark.parametrize("item", [*RECORDINGS, *ALERTS], ids=lambda item: item.name)
def test_a_rule_asks_for_series_that_there_are(item: Any) -> None:
    parsed(item.expr)
    assert names(item.expr) <= inventory.known()


def test_every_metric_of_a_job_is_used_by_a_dashboard_or_a_rule() -> None:
    exprs = [expr for board in CASES.values() for _, expr in lint.targets(board)]
    exprs += [item.expr for item in (*RECORDINGS, *ALERTS)]
    used = {name for expr in exprs for name in names(expr)}
    unused = {entry.name for entry in inventory.entries() if not used & set(entry.series)}
    assert unused == UNUSED.keys()
    assert {rule.name for rule in RECORDINGS} <= used


UNUSED = {
    "kinema_stage_done": "kinema_job_progress_ratio is known for pods without metrics, too",
    "kinema_stage_total": "likewise",
    "kinema_stage_eta_seconds": "kinema_job_eta_seconds, likewise",
    "kinema_stage_report_timestamp_seconds": "kinema_job_progress_timestamp_seconds, likewise",
    "kinema_stage_metric": "what it names differs by stage",
    "kinema_stage_text": "words",
    "kinema_train_samples": "a sum that the job's end tells",
    "kinema_train_step_tokens": "tokens a second say more",
    "process_start_time_seconds": "for whoever looks for restarts",
}


def test_runbooks_have_commands_and_alerts_lead_to_them() -> None:
    groups = yaml.safe_load((CHART / "rules" / "alerts.yaml").read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"]]
    assert len(alerts) == len(ALERTS)
    for rule in alerts:
        page = files.ROOT / "docs" / "runbooks" / rule["annotations"]["runbook_url"].rpartition("/")[2]
        text = page.read_text(encoding="utf-8")
        assert re.search(r"^   (kinema|kubectl) ", text, re.MULTILINE), page
        assert rule["expr"] in text


COMMANDS = sorted({command for alert in ALERTS for step in alert.steps for command in step.commands})


@pytest.mark.parametrize("line", [command for command in COMMANDS if command.startswith("kinema ")])
def test_a_command_of_a_runbook_is_one_that_kinema_takes(line: str) -> None:
    # Options are read before --help is answered, so that one that is not there is refused.
    said = CliRunner().invoke(app, [*shlex.split(line)[1:], "--help"])
    assert said.exit_code == 0, said.output


def test_a_command_that_kinema_does_not_take_is_seen() -> None:
    with pytest.raises(AssertionError, match="--because"):
        test_a_command_of_a_runbook_is_one_that_kinema_takes("kinema why NAME --because")


def test_other_commands_ask_for_labels_that_pods_have() -> None:
    asked = {key for line in COMMANDS for key in re.findall(r"(kinema\.dev/[a-z-]+)=", line)}
    assert asked and asked <= {LABEL_JOB, LABEL_STAGE, LABEL_ATTEMPT}


def test_the_metrics_page_has_every_metric() -> None:
    text = (files.ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in {entry.name for entry in inventory.entries()} - {"up"}:
        assert f"`{name}`" in text


TEXTS = sorted(
    path
    for pattern in ("README.md", "docs/**/*.md", "examples/**/*", "charts/kinema/**/*", "bench/*.md", "crds/**/*.yaml")
    for path in files.ROOT.glob(pattern)
    if path.is_file() and path.suffix in (".md", ".yaml", ".tpl", ".txt", ".json")
)
PACKAGES = {path.parent.name for folder in ("crds", "operator", "trainer", "tools")
            for path in (files.ROOT / folder).glob("kinema_*/__init__.py")}  # fmt: skip
NAME = re.compile(r"(?<![\w./-])kinema_[a-z0-9_]*[a-z0-9](?!\w|_*\.\.\.)")


def strange(text: str) -> set[str]:
    """What looks like a metric of ours, and is none."""
    names_of_histograms = {entry.name for entry in inventory.entries()}
    return set(NAME.findall(text)) - inventory.known() - names_of_histograms - PACKAGES


def test_metrics_that_are_named_anywhere_are_served() -> None:
    assert {"kinema_train_loss", "kinema_stage_text"} <= {
        name for path in TEXTS for name in NAME.findall(path.read_text(encoding="utf-8"))
    }
    found = {str(path.relative_to(files.ROOT)): strange(path.read_text(encoding="utf-8")) for path in TEXTS}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_metric_of_yesterday_is_seen() -> None:
    text = "look at `kinema_stage_loss{stage=...}` and kinema_leader, in `kinema_api.names` and kinema_train_..."
    assert strange(text) == {"kinema_stage_loss"}


def test_no_label_of_ours_is_one_that_prometheus_gives() -> None:
    taken = {"job", "instance", "exported_job"}
    assert not [entry for entry in inventory.entries() if entry.name != "up" and taken & set(entry.labels)]


def test_variables_of_grafana_are_filled_in() -> None:
    assert filled('rate(x{a="$job", b=~"${vtj:regex}"}[$__rate_interval])', {"job": "j"}) == (
        'rate(x{a="j", b=~".*"}[5m])'
    )
