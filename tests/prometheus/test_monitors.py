# SPDX-License-Identifier: Apache-2.0
"""The chart's monitors choose the pods that serve metrics, and give their series the labels that queries ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kinema_dashboards import live, scene
from kinema_dashboards import monitors as module
from kinema_dashboards.live import Prometheus
from kinema_dashboards.monitors import MonitorError, described, scrape_configs, write
from kinema_dashboards.programs import Programs
from kinema_demo.install import NAMESPACE

from kinema_api.names import LABEL_ATTEMPT, LABEL_JOB, MANAGED_BY, MANAGER

from tests.monitors import monitors
from tests.waiting import until

Raw = dict[str, Any]
STAGE = {MANAGED_BY: MANAGER, LABEL_JOB: "wan", LABEL_ATTEMPT: "2"}


def pod(name: str, port: int, labels: Raw, *, namespace: str = "team", named: str = "metrics", phase: str = "Running",
        address: str = "127.0.0.1") -> Raw:  # fmt: skip
    ports = [{"name": named, "containerPort": port, "protocol": "TCP"}]
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "main", "ports": ports}]},
        "status": {"phase": phase, **({"podIP": address} if address else {})},
    }


def component(name: str) -> Raw:
    return {"app.kubernetes.io/instance": "kinema", "app.kubernetes.io/component": name}


@pytest.fixture(scope="module")
def prometheus(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that knows pods of the cluster: some of ours, some of others, each with metrics."""
    folder = tmp_path_factory.mktemp("monitors")
    path = folder / "pods.json"
    with scene.served() as (_, targets):
        port = {target.job: target.port for target in targets}
        stage = port["kinema-stages"]
        worker = {**STAGE, "training.kubeflow.org/replica-type": "worker"}
        second = {**STAGE, "batch.kubernetes.io/job-completion-index": "1"}
        write(
            [
                pod("operator-a", port["kinema-operator"], component("operator"), namespace=NAMESPACE),
                pod("server-a", port["kinema-server"], component("server"), namespace=NAMESPACE),
                pod("operator-b", port["kinema-operator"], component("operator"), namespace="elsewhere"),
                pod("wan-train-2-master-0", stage, STAGE),
                pod("wan-train-2-worker-0", stage, worker),
                pod("wan-features-1-1", stage, second),
                pod("wan-check-1-x", stage, STAGE, phase="Succeeded"),
                pod("wan-reader", stage, STAGE, named="http"),
                pod("wan-new", stage, STAGE, address=""),
                pod("other", stage, {MANAGED_BY: "Helm", LABEL_JOB: "wan"}),
            ],
            path,
        )
        configs = [item for monitor in monitors() for item in scrape_configs(monitor, pods=path, interval="1s")]
        with live.running(programs, folder, configs) as found:
            until("every pod is scraped", lambda: len(found.now("up == 1")) >= 3, seconds=30)
            yield found


def test_the_pods_that_serve_metrics_are_scraped_and_no_others(prometheus: Prometheus) -> None:
    assert prometheus.healthy() == []
    assert {(item.labels["job"], item.labels["pod"]) for item in prometheus.now("up")} == {
        (f"{NAMESPACE}/kinema-operator", "operator-a"),
        (f"{NAMESPACE}/kinema-server", "server-a"),
        (f"{NAMESPACE}/kinema-stages", "wan-train-2-master-0"),
    }


def test_series_of_stages_carry_job_and_attempt(prometheus: Prometheus) -> None:
    (loss,) = prometheus.now("kinema_train_loss")
    wanted = {"namespace": "team", "vtj": "wan", "attempt": "2", "stage": "train", "pod": "wan-train-2-master-0"}
    assert wanted.items() <= loss.labels.items()


def test_the_operators_series_name_the_jobs_namespace(prometheus: Prometheus) -> None:
    assert {item.labels["namespace"] for item in prometheus.now("kinema_job_info")} == {scene.NAMESPACE}
    (leader,) = prometheus.now("kinema_leader")
    assert leader.labels["namespace"] == NAMESPACE


def test_a_port_is_described_as_the_discovery_in_kubernetes_does() -> None:
    labels = {"kinema.dev/job": "wan"}
    (group,) = described([pod("a", 1, labels), pod("b", 1, labels, address="")])
    assert group == {
        "targets": ["127.0.0.1:1"],
        "labels": {
            "__meta_kubernetes_namespace": "team",
            "__meta_kubernetes_pod_name": "a",
            "__meta_kubernetes_pod_ip": "127.0.0.1",
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_label_kinema_dev_job": "wan",
            "__meta_kubernetes_pod_labelpresent_kinema_dev_job": "true",
            "__meta_kubernetes_pod_container_name": "main",
            "__meta_kubernetes_pod_container_port_name": "metrics",
            "__meta_kubernetes_pod_container_port_number": "1",
            "__meta_kubernetes_pod_container_port_protocol": "TCP",
        },
    }


def monitor(**spec: Any) -> Raw:
    return {"kind": "PodMonitor", "metadata": {"name": "m", "namespace": "n"}, "spec": spec}


def test_what_is_not_understood_is_refused() -> None:
    odd = {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}
    service = {**monitor(), "kind": "ServiceMonitor"}
    for wrong, words in (
        (service, "ServiceMonitor m"),
        (monitor(selector=odd, podMetricsEndpoints=[{"port": "metrics"}]), "NotIn"),
    ):
        with pytest.raises(MonitorError, match=words):
            scrape_configs(wrong, pods=Path("p.json"), interval="1s")


def test_namespaces_are_those_of_the_monitor() -> None:
    def chosen(**spec: Any) -> list[str]:
        whole = monitor(selector={}, podMetricsEndpoints=[{"port": "metrics"}], **spec)
        (config,) = scrape_configs(whole, pods=Path("p.json"), interval="1s")
        asked = [f"{module.META}namespace"]
        rules = config["relabel_configs"]
        return [item["regex"] for item in rules if item.get("action") == "keep" and item["source_labels"] == asked]

    assert chosen() == ["(n)"]
    assert chosen(namespaceSelector={"matchNames": ["a", "b"]}) == ["(a|b)"]
    assert chosen(namespaceSelector={"any": True}) == []
