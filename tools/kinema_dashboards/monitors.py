# SPDX-License-Identifier: Apache-2.0
"""PodMonitors without Prometheus's operator: the scrape configs that it makes of them, and the pods they choose from.

Debian's Prometheus is built without discovery in Kubernetes. A file takes its place: it holds every pod with the labels
that this discovery gives, so that the very relabelings of the monitors decide what is scraped and how it is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Raw = dict[str, Any]
META = "__meta_kubernetes_"
_UNSAFE = re.compile(r"[^a-zA-Z0-9_]")
_FIELDS = {"sourceLabels": "source_labels", "targetLabel": "target_label"}


class MonitorError(Exception):
    """A monitor says what is not understood here."""


def scrape_configs(monitor: Raw, *, pods: Path, interval: str) -> list[Raw]:
    """What Prometheus's operator makes of a PodMonitor, one for each endpoint.

    Args:
        monitor: the object.
        pods: the file with the pods, see `described`.
        interval: in place of the monitor's own.

    Raises:
        MonitorError: it is none, or selects by what is not understood here.
    """
    if monitor["kind"] != "PodMonitor":
        raise MonitorError(f"{monitor['kind']} {monitor['metadata']['name']}: only PodMonitors are understood")
    metadata, spec = monitor["metadata"], monitor["spec"]
    place = f"{metadata['namespace']}/{metadata['name']}"
    return [
        {
            "job_name": f"podMonitor/{place}/{number}",
            "honor_labels": bool(endpoint.get("honorLabels")),
            "metrics_path": endpoint.get("path", "/metrics"),
            "scheme": endpoint.get("scheme", "http"),
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "file_sd_configs": [{"files": [str(pods)], "refresh_interval": "5s"}],
            "relabel_configs": [
                *_chosen(spec, own=metadata["namespace"]),
                *_named(endpoint["port"], job=place),
                *({_FIELDS.get(key, key): value for key, value in item.items()} for item in
                  endpoint.get("relabelings") or ()),
            ],
        }
        for number, endpoint in enumerate(spec["podMetricsEndpoints"])
    ]  # fmt: skip


def _chosen(spec: Raw, *, own: str) -> Iterator[Raw]:
    """Keep the pods that the monitor selects."""
    # Pods that have ended keep their address, which another pod may have by then.
    yield {"source_labels": [f"{META}pod_phase"], "regex": "Failed|Succeeded", "action": "drop"}
    within: Raw = spec.get("namespaceSelector") or {}
    if not within.get("any"):
        names = within.get("matchNames") or [own]
        yield {"source_labels": [f"{META}namespace"], "regex": _one_of(names), "action": "keep"}
    selector: Raw = spec["selector"]
    for key, value in (selector.get("matchLabels") or {}).items():
        yield _keep(key, f"{_one_of([value])};true")
    for item in selector.get("matchExpressions") or ():
        match item["operator"]:
            case "Exists":
                yield _keep(item["key"], ".*;true")
            case "In":
                yield _keep(item["key"], f"{_one_of(item['values'])};true")
            case other:
                raise MonitorError(f"operator {other} of {item['key']} is not understood")


def _keep(label: str, regex: str) -> Raw:
    name = _UNSAFE.sub("_", label)
    sources = [f"{META}pod_label_{name}", f"{META}pod_labelpresent_{name}"]
    return {"source_labels": sources, "regex": regex, "action": "keep"}


def _one_of(values: Iterable[str]) -> str:
    return f"({'|'.join(re.escape(value) for value in values)})"


def _named(port: str, *, job: str) -> Iterator[Raw]:
    """Keep the port, and tell whose it is."""
    yield {"source_labels": [f"{META}pod_container_port_name"], "regex": re.escape(port), "action": "keep"}
    for source, target in (("namespace", "namespace"), ("pod_container_name", "container"), ("pod_name", "pod")):
        yield {"source_labels": [META + source], "target_label": target}
    yield {"target_label": "job", "replacement": job}
    yield {"target_label": "endpoint", "replacement": port}


def described(pods: Iterable[Raw]) -> list[Raw]:
    """The ports of pods as the discovery in Kubernetes describes them, for `file_sd_configs`."""
    return [group for pod in pods if (pod.get("status") or {}).get("podIP") for group in _ports(pod)]


def _ports(pod: Raw) -> Iterator[Raw]:
    common = dict(_of(pod))
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            own = {
                "container_name": container["name"],
                "container_port_name": port.get("name", ""),
                "container_port_number": str(port["containerPort"]),
                "container_port_protocol": port.get("protocol", "TCP"),
            }
            labels = {f"{META}pod_{name}": value for name, value in own.items()}
            yield {"targets": [f"{pod['status']['podIP']}:{port['containerPort']}"], "labels": {**common, **labels}}


def _of(pod: Raw) -> Iterator[tuple[str, str]]:
    metadata, status = pod["metadata"], pod["status"]
    yield f"{META}namespace", metadata["namespace"]
    yield f"{META}pod_name", metadata["name"]
    yield f"{META}pod_ip", status["podIP"]
    yield f"{META}pod_phase", status.get("phase", "Unknown")
    labels: Mapping[str, str] = metadata.get("labels") or {}
    for key, value in labels.items():
        name = _UNSAFE.sub("_", key)
        yield f"{META}pod_label_{name}", value
        yield f"{META}pod_labelpresent_{name}", "true"


def write(pods: Iterable[Raw], path: Path) -> None:
    """Put the pods into the file, at once, so that Prometheus never reads half of it."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(described(pods)), encoding="utf-8")
    new.replace(path)
