# SPDX-License-Identifier: Apache-2.0
"""Alerts lead to runbooks where the installation has them."""

from __future__ import annotations

import pytest
from kinema_chart.values import RUNBOOKS
from kinema_demo.install import CHART, ROOT

from tests.chart.conftest import Helm, Object, Render, of_kind


def alerts(objects: list[Object]) -> dict[str, Object]:
    rules = [rule for item in of_kind(objects, "PrometheusRule") for group in item["spec"]["groups"]
             for rule in group["rules"]]  # fmt: skip
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def values(**rules: str) -> Object:
    return {"monitoring": {"rules": {"create": "always", **rules}}}


def test_every_alert_leads_to_a_page_of_the_repository(render: Render) -> None:
    found = alerts(render(values()))
    assert found
    for name, alert in found.items():
        assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS}/{name}.md"
        assert (ROOT / "docs" / "runbooks" / f"{name}.md").is_file()


def test_the_runbooks_of_an_installation_can_lie_elsewhere(render: Render) -> None:
    before, after = alerts(render(values())), alerts(render(values(runbookUrl="http://wiki.example.com/kinema")))
    for name, alert in after.items():
        assert alert["annotations"].pop("runbook_url") == f"http://wiki.example.com/kinema/{name}.md"
        before[name]["annotations"].pop("runbook_url")
    assert after == before, "nothing else changes"


@pytest.mark.parametrize("wrong", ["", "wiki.example.com", "https://wiki.example.com/", "https://a b"])
def test_what_is_no_address_of_a_folder_is_refused(helm: Helm, wrong: str) -> None:
    done = helm("template", "kinema", str(CHART), values=values(runbookUrl=wrong))
    assert done.returncode != 0
    assert "runbookUrl" in done.stderr
