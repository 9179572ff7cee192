# SPDX-License-Identifier: Apache-2.0
"""Every file that is made here, by its path in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kinema_dashboards import build, pages
from kinema_dashboards.alerts import ALERTS
from kinema_dashboards.rules import GROUPS

ROOT = Path(__file__).resolve().parents[2]
CHART = "charts/kinema/files"
HEAD = "# SPDX-License-Identifier: Apache-2.0\n# Made by tools/dashboards of tools/kinema_dashboards.\n"
INTERVAL = "30s"


class _Dumper(yaml.SafeDumper):
    """Writes queries of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(document: dict[str, Any]) -> str:
    return HEAD + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def recordings() -> str:
    """The recording rules as Prometheus reads them."""
    groups = [
        {"name": name, "interval": INTERVAL, "rules": [rule.wire() for rule in rules]} for name, rules in GROUPS.items()
    ]
    return _yaml({"groups": groups})


def alerts() -> str:
    """The alerts as Prometheus reads them."""
    groups = [
        {"name": name, "rules": [alert.wire() for alert in ALERTS if alert.of_job is of_job]}
        for name, of_job in (("kinema-jobs-alerts", True), ("kinema-alerts", False))
    ]
    return _yaml({"groups": groups})


def made() -> dict[str, str]:
    """What each file must hold."""
    files = {f"{CHART}/dashboards/{board.uid}.json": build.text(board) for board in build.BOARDS}
    files |= {f"{CHART}/rules/recordings.yaml": recordings(), f"{CHART}/rules/alerts.yaml": alerts()}
    files |= {"docs/metrics.md": pages.metrics(), "docs/dashboards.md": pages.dashboards()}
    files["docs/runbooks/README.md"] = pages.runbooks()
    return files | {f"docs/runbooks/{alert.page}": pages.runbook(alert) for alert in ALERTS}


def stale(root: Path = ROOT) -> list[str]:
    """Files that are not what they must be, or should not be there."""
    wanted = made()
    wrong = [path for path, text in wanted.items() if not _holds(root / path, text)]
    folders = (f"{CHART}/dashboards", f"{CHART}/rules", "docs/runbooks")
    there = {str(path.relative_to(root)) for folder in folders for path in (root / folder).iterdir() if path.is_file()}
    return sorted({*wrong, *(there - set(wanted))})


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def write(root: Path = ROOT) -> list[str]:
    """Write those that are stale; returns which."""
    wrong, wanted = stale(root), made()
    for name in wrong:
        path = root / name
        if name in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[name], encoding="utf-8")
        else:
            path.unlink()
    return wrong
