# SPDX-License-Identifier: Apache-2.0
"""What Prometheus and Grafana are given, and when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from kinema_demo.install import CHART

from kinema_api.names import LABEL_JOB, LABEL_STAGE, MANAGED_BY, MANAGER

from tests.chart.conftest import VALUES, Object, Render, Values, named, of_kind
from tests.chart.test_network_policies import selects
from tests.chart.test_objects import check

GROUP = "monitoring.coreos.com/v1"
KINDS = ("PodMonitor", "ServiceMonitor", "PrometheusRule")
KNOWS = tuple(f"{GROUP}/{kind}" for kind in KINDS)
RULES = {"groups": [{"name": "x", "rules": [{"alert": "A", "expr": "up == 0", "annotations": {"s": "{{ $value }}"}}]}]}


@pytest.fixture(scope="session")
def with_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with one rule file and one dashboard that the tests know."""
    chart = without(tmp_path_factory.mktemp("chart") / "kinema")
    for name, text in {
        "rules/one.yaml": yaml.safe_dump(RULES),
        "dashboards/two.json": '{"title": "{{job}}"}\n',
    }.items():
        path = chart / "files" / name
        path.parent.mkdir()
        path.write_text(text)
    return chart


def without(chart: Path) -> Path:
    shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("rules", "dashboards"))
    return chart


def made(objects: list[Object]) -> set[tuple[str, str]]:
    return {(item["kind"], item["metadata"]["name"]) for item in of_kind(objects, *KINDS)}


ALL_MONITORS = {("PodMonitor", f"kinema-{name}") for name in ("operator", "server", "stages")}


@pytest.mark.parametrize(
    ("create", "knows", "wanted"),
    [
        ("auto", (), set()),
        ("auto", KNOWS, {*ALL_MONITORS, ("PrometheusRule", "kinema-one")}),
        ("auto", KNOWS[:1], ALL_MONITORS),
        ("always", (), {*ALL_MONITORS, ("PrometheusRule", "kinema-one")}),
        ("never", KNOWS, set()),
    ],
)
def test_kinds_are_made_where_the_cluster_knows_them_unless_told_otherwise(
    render: Render, with_files: Path, create: str, knows: tuple[str, ...], wanted: set[tuple[str, str]]
) -> None:
    values: Values = {"monitoring": {"monitor": {"create": create}, "rules": {"create": create}}}
    assert made(render(values, knows=knows, chart=with_files)) == wanted


def test_a_chart_without_rules_and_dashboards_renders(render: Render, tmp_path: Path) -> None:
    objects = render(VALUES["monitoring"], chart=without(tmp_path / "kinema"))
    assert made(objects) == ALL_MONITORS
    assert [item["metadata"]["name"] for item in of_kind(objects, "ConfigMap")] == ["kinema-config"]


def test_rules_and_dashboards_arrive_as_they_are(render: Render, with_files: Path) -> None:
    objects = render(VALUES["monitoring"], chart=with_files)
    for item in objects:
        check(item)
    rule = named(objects, "PrometheusRule", "kinema-one")
    assert rule["spec"] == RULES, "{{ $value }} is Prometheus' own template"
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    dashboard = named(objects, "ConfigMap", "kinema-dashboard-two")
    assert json.loads(dashboard["data"]["two.json"]) == {"title": "{{job}}"}
    assert dashboard["metadata"]["namespace"] == "monitoring"
    assert dashboard["metadata"]["labels"]["grafana_board"] == "training"
    assert dashboard["metadata"]["annotations"] == {"grafana_folder": "Training"}
    assert not of_kind(render(VALUES["no-monitoring"], chart=with_files, knows=KNOWS), *KINDS)


def test_monitors_find_the_pods_and_their_port(render: Render) -> None:
    objects = render(VALUES["monitoring"])
    for component in ("operator", "server"):
        pod = named(objects, "Deployment", f"kinema-{component}")["spec"]["template"]
        monitor = named(objects, "PodMonitor", f"kinema-{component}")
        assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
        assert selects(monitor["spec"]["selector"], pod["metadata"]["labels"])
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
        assert endpoint["interval"] == "15s"
        assert endpoint["honorLabels"], "the operator's series of a job name the job's namespace"


def test_pods_of_jobs_are_scraped_in_the_watched_namespaces(render: Render) -> None:
    spec = named(render(VALUES["monitoring"]), "PodMonitor", "kinema-stages")["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    assert selects(spec["selector"], {MANAGED_BY: MANAGER, LABEL_JOB: "wan", LABEL_STAGE: "train"})
    assert not selects(spec["selector"], {MANAGED_BY: "Helm"})
    some = render({**VALUES["monitoring"], **VALUES["watch-namespaces"]})
    assert named(some, "PodMonitor", "kinema-stages")["spec"]["namespaceSelector"] == {
        "matchNames": ["team-a", "team-b"]
    }


def test_a_service_monitor_has_services_of_its_own(render: Render) -> None:
    objects = render(VALUES["service-monitor"])
    assert made(objects) - {("PrometheusRule", item[1]) for item in made(objects)} == {
        ("ServiceMonitor", "kinema-operator"),
        ("ServiceMonitor", "kinema-server"),
    }
    services = of_kind(objects, "Service")
    for component in ("operator", "server"):
        spec = named(objects, "ServiceMonitor", f"kinema-{component}")["spec"]
        (service,) = [item for item in services if selects(spec["selector"], item["metadata"]["labels"])]
        pod = named(objects, "Deployment", f"kinema-{component}")["spec"]["template"]
        assert selects({"matchLabels": service["spec"]["selector"]}, pod["metadata"]["labels"])
        assert {endpoint["port"] for endpoint in spec["endpoints"]} == {
            port["name"] for port in service["spec"]["ports"]
        }
