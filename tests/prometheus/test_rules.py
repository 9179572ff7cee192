# SPDX-License-Identifier: Apache-2.0
"""promtool takes the rules, every alert fires when it must and not before, and every rule records what it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kinema_chart.values import RUNBOOKS
from kinema_dashboards import files, inventory, live
from kinema_dashboards.alerts import ALERTS
from kinema_dashboards.programs import Programs
from kinema_dashboards.queries import filled, names
from kinema_dashboards.rules import GROUPS, RECORDINGS

from tests.prometheus.cases import FIRING, RECORDED, SHOWN, UNKNOWN_ON_A_CPU, Firing, Recorded

RULES = sorted((files.ROOT / "charts" / "kinema" / "files" / "rules").glob("*.yaml"))
ORDER = [*GROUPS, "kinema-jobs-alerts", "kinema-alerts"]


def promtool(programs: Programs, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([programs.promtool, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_promtool_takes_the_rules(programs: Programs) -> None:
    done = promtool(programs, "check", "rules", *RULES)
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.findall(r"SUCCESS: (\d+) rules", done.stdout) == [str(len(ALERTS)), str(len(RECORDINGS))]


def test_every_alert_and_every_rule_has_a_case() -> None:
    assert {case.alert for case in FIRING} == {alert.name for alert in ALERTS}
    assert {case.name for case in RECORDED} == {rule.name for rule in RECORDINGS}


@pytest.mark.parametrize("case", [*FIRING, *RECORDED, *SHOWN], ids=lambda case: getattr(case, "alert", "") or case.name)
def test_a_case_feeds_series_that_somebody_serves(case: Firing | Recorded) -> None:
    assert {name for series in case.series for name in names(series)} <= inventory.known()


def expected(case: Firing) -> dict[str, Any]:
    alert = next(alert for alert in ALERTS if alert.name == case.alert)
    annotations = {
        "summary": case.summary,
        "description": case.description or alert.description,
        "runbook_url": f"{RUNBOOKS}/{alert.page}",
    }
    return {"exp_labels": {"severity": alert.severity, **case.labels}, "exp_annotations": annotations}


def test_alerts_fire_when_they_must(programs: Programs, tmp_path: Path) -> None:
    tests = [
        {
            "name": f"{case.alert} {number}",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "alert_rule_test": [
                {"eval_time": case.quiet, "alertname": case.alert, "exp_alerts": []},
                {"eval_time": case.at, "alertname": case.alert, "exp_alerts": [expected(case)]},
            ],
        }
        for number, case in enumerate(FIRING)
    ]
    run(programs, tmp_path, tests)


def samples(case: Recorded) -> list[dict[str, Any]]:
    return [{"labels": f"{case.name}{{{labels}}}", "value": value} for labels, value in case.samples.items()]


def test_rules_record_what_they_say(programs: Programs, tmp_path: Path) -> None:
    tests = [
        {
            "name": case.name,
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [{"expr": case.name, "eval_time": case.at, "exp_samples": samples(case)}],
        }
        for case in RECORDED
    ]
    run(programs, tmp_path, tests)


OF_JOB, OF_FLEET = {"namespace": "team", "vtj": "wan"}, {"namespace": ".+"}


def excused() -> set[str]:
    """The queries of panels that a CPU cannot answer."""
    known = {*live.EXCUSES, *UNKNOWN_ON_A_CPU}
    asked = {query.expr for _, _, query in live.asked() if names(query.expr) <= known}
    return {filled(expr, OF_JOB if "$vtj" in expr else OF_FLEET) for expr in asked}


def test_what_no_cpu_can_show_has_a_case() -> None:
    assert {case.name for case in SHOWN} == excused()


def test_panels_show_what_only_accelerators_say(programs: Programs, tmp_path: Path) -> None:
    tests = [
        {
            "name": case.name,
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": case.name,
                    "eval_time": case.at,
                    "exp_samples": [
                        {"labels": f"{{{labels}}}", "value": value} for labels, value in case.samples.items()
                    ],
                }
            ],
        }
        for case in SHOWN
    ]
    run(programs, tmp_path, tests)


@pytest.mark.parametrize("kept", [0, 1])
def test_promtool_sees_a_wrong_expectation(programs: Programs, tmp_path: Path, kept: int) -> None:
    case = RECORDED[-1]
    wrong = samples(case)[:kept]
    for sample in wrong:
        sample["value"] += 1
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [{"expr": case.name, "eval_time": case.at, "exp_samples": wrong}],
        }
    ]
    with pytest.raises(AssertionError):
        run(programs, tmp_path, tests)


def run(programs: Programs, folder: Path, tests: list[dict[str, Any]]) -> None:
    path = folder / "tests.yaml"
    document = {
        "rule_files": [str(rule) for rule in RULES],
        "evaluation_interval": "1m",
        "group_eval_order": ORDER,
        "tests": tests,
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    done = promtool(programs, "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
