# SPDX-License-Identifier: Apache-2.0
"""What Helm prints after an installation: what to type next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kinema_demo.install import CHART

from tests.chart.conftest import VALUES, Render, named

OBJECT = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: notes, namespace: x, labels: {}}
data: {text: {{ include "notes" . | toJson }}}
"""


@pytest.fixture(scope="session")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with its notes as an object: Helm shows them to those alone who install into a cluster."""
    chart = tmp_path_factory.mktemp("chart") / "kinema"
    shutil.copytree(CHART, chart)
    notes = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "notes.yaml").write_text(f'{{{{- define "notes" }}}}{notes}{{{{ end -}}}}\n{OBJECT}')
    return chart


@pytest.mark.parametrize(
    ("values", "says", "never"),
    [
        ("defaults", ["helm test kinema -n mine", "examples/pools/nvidia-8gpu.yaml", "every namespace"], "CAUTION"),
        ("pools", ["Pools: cpu, h100", "kubectl apply -f examples/wan-job.yaml"], "examples/pools"),
        ("watch-namespaces", ["in team-a, team-b."], "every namespace"),
        ("crds-elsewhere", ["kubectl apply --server-side --force-conflicts -f crds/"], "CAUTION"),
        ("crds-removed", ["CAUTION: crds.keep is false"], "leaves the Custom"),
        ("monitoring", ["kinema why wan"], "does not know PodMonitor"),
    ],
)
def test_notes_fit_what_was_installed(render: Render, readable: Path, values: str, says: list[str], never: str) -> None:
    notes: str = named(render(VALUES[values], namespace="mine", chart=readable), "ConfigMap", "notes")["data"]["text"]
    assert not [wanted for wanted in says if wanted not in notes], notes
    assert never not in notes
    assert max(map(len, notes.splitlines())) <= 120
