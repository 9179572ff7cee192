# SPDX-License-Identifier: Apache-2.0
"""The pages about metrics and alerts."""

from __future__ import annotations

from collections.abc import Iterable

from kinema_dashboards import inventory
from kinema_dashboards.alerts import ALERTS, Alert
from kinema_dashboards.boards import Board
from kinema_dashboards.build import BOARDS
from kinema_dashboards.inventory import FOREIGN, PROCESS, Entry
from kinema_dashboards.rules import RECORDINGS

_HEAD = """# Metrics

Everything that Kinema tells Prometheus. The dashboards and alerts of the chart are made of these and of nothing else.

| who | where | how it is scraped |
|---|---|---|
| operator | port `metrics` (9090), `/metrics` | with `honorLabels: true`: `namespace` is the job's |
| server | port `metrics` (9090), `/metrics` | as any other target |
| stage pods | port `metrics` (9464), `/metrics` | the label `kinema.dev/job` of the pod becomes `vtj` |

Series of a job carry `namespace` and `vtj` (its name). No series outlives its job: those of the operator are made anew
at each scrape from the jobs that are there, and end an hour after the job has; those of a pod end with the pod. Only
the first process of a stage serves metrics, on port 9464; `KINEMA_METRICS_PORT` names another one, 0 serves none. A pod
whose training is transformers' own Trainer serves none: what it posts is in `kinema_job_progress_ratio`,
`kinema_job_eta_seconds` and `kinema_job_loss`.

Without the Prometheus operator's PodMonitors, this scrapes stage pods:

```yaml
scrape_configs:
  - job_name: kinema-stages
    kubernetes_sd_configs: [{role: pod}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_pod_label_kinema_dev_job], regex: .+, action: keep}
      - {source_labels: [__meta_kubernetes_pod_container_port_name], regex: metrics, action: keep}
      # Only the first pod of an attempt serves metrics.
      - {source_labels: [__meta_kubernetes_pod_label_training_kubeflow_org_replica_type], regex: worker, action: drop}
      - source_labels: [__meta_kubernetes_pod_label_batch_kubernetes_io_job_completion_index]
        regex: "[1-9][0-9]*"
        action: drop
      - {source_labels: [__meta_kubernetes_pod_label_kinema_dev_job], target_label: vtj}
      - {source_labels: [__meta_kubernetes_pod_label_kinema_dev_attempt], target_label: attempt}
      - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
```
"""

_BOARDS = """# Dashboards

The chart installs three, as ConfigMaps that Grafana's sidecar finds by the label `grafana_dashboard`; without the
sidecar, import the files of `charts/kinema/files/dashboards`. The data source is chosen at the top. What accelerators
themselves measure comes from DCGM's exporter (NVIDIA) or npu-exporter (Ascend), and the same panels show either.

The pictures are no screens of Grafana: they show what a real Prometheus answers to each panel's queries; each says of
which jobs. `tools/dashboards sheets --prometheus URL --namespace NAMESPACE --job NAME` draws your own, and
`tools/dashboards silent --prometheus URL` lists the queries to which your Prometheus has had no data.

"""


def metrics() -> str:
    """docs/metrics.md."""
    stages = "The first process of each stage; what training alone knows is named `kinema_train_...`."
    parts = [
        _HEAD,
        _section("Operator", "", inventory.operator()),
        _section("Server", "", inventory.of_server()),
        _section("Stage pods", stages, inventory.of_stages()),
        _section("Every process", "By Prometheus's own client, among others:", PROCESS),
        _recorded(),
        _foreign(),
    ]
    return "\n".join(parts)


def _section(title: str, text: str, entries: Iterable[Entry]) -> str:
    rows = "\n".join(f"| `{entry.name}` | {entry.kind} | {_labels(entry.labels)} | {entry.text} |" for entry in entries)
    head = f"## {title}\n\n" + (f"{text}\n\n" if text else "")
    return f"{head}| metric | kind | labels | meaning |\n|---|---|---|---|\n{rows}\n"


def _labels(labels: Iterable[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _recorded() -> str:
    rows = "\n".join(f"| `{rule.name}` | {_labels(rule.labels)} | {rule.text} |" for rule in RECORDINGS)
    return (
        "## Recorded\n\nThe chart's recording rules. Those of accelerators read the same whether DCGM's exporter"
        " (NVIDIA)\nor npu-exporter (Ascend) measured them.\n\n"
        f"| series | labels | meaning |\n|---|---|---|\n{rows}\n"
    )


def _foreign() -> str:
    rows = "\n".join(f"| `{name}` | {who} |" for name, who in FOREIGN.items())
    return f"## Of others\n\nWhat the recording rules read.\n\n| metric | served by |\n|---|---|\n{rows}\n"


def dashboards() -> str:
    """docs/dashboards.md."""
    return _BOARDS + "\n".join(_board(board) for board in BOARDS)


def _board(board: Board) -> str:
    parts = [f"## {board.title}\n\n{board.text}\n\n![{board.title}](dashboards/{board.uid}.png)\n"]
    for row in board.rows:
        lines = "\n".join(f"| {panel.title} | {panel.text} |" for panel in row.panels)
        parts.append(f"| {row.title} | |\n|---|---|\n{lines}\n")
    return "\n".join(parts)


def runbook(alert: Alert) -> str:
    """The runbook of an alert."""
    about = "`NAMESPACE` and `NAME` are the alert's labels `namespace` and `vtj`.\n\n" if alert.of_job else ""
    steps = "\n".join(_step(number, step.why, step.commands) for number, step in enumerate(alert.steps, start=1))
    return (
        f"# {alert.name}\n\n{alert.description}\n\n"
        f"| severity | after | dashboard |\n|---|---|---|\n"
        f"| {alert.severity} | {alert.hold} | {'Kinema / Job' if alert.of_job else 'Kinema / Operator'} |\n\n"
        f"## What it means\n\n{alert.meaning}\n\n## What follows\n\n{alert.harm}\n\n"
        f"## What to do\n\n{about}{steps}\n"
        f"## How it is found\n\n```promql\n{alert.expr}\n```\n"
    )


def _step(number: int, why: str, commands: tuple[str, ...]) -> str:
    block = "".join(f"   {command}\n" for command in commands)
    return f"{number}. {why}\n" + (f"\n   ```bash\n{block}   ```\n" if commands else "")


def runbooks() -> str:
    """docs/runbooks/README.md."""
    rows = "\n".join(f"| [{alert.name}]({alert.page}) | {alert.severity} | {alert.description} |" for alert in ALERTS)
    return (
        "# Runbooks\n\nOne for each alert that the chart installs; the alert's `runbook_url` leads here.\n\n"
        f"| alert | severity | when |\n|---|---|---|\n{rows}\n"
    )
