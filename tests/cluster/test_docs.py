# SPDX-License-Identifier: Apache-2.0
"""What docs/kubectl.md shows of kubectl is what kubectl prints. UPDATE_DOCS=1 writes it there.

A block of the page is marked by a line `<!-- $ COMMAND -->`; the fenced block behind it holds the output.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from kinema_demo.install import ROOT
from kinema_demo.kubectl import Kubectl

from kinema_api.names import Stage

from tests.cluster.jobs import Job
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

PAGE = ROOT / "docs" / "kubectl.md"
BLOCK = re.compile(r"<!-- \$ (?P<command>.+?) -->\n```\w*\n(?P<output>.*?)```\n", re.DOTALL)
NOWHERE = """
apiVersion: kinema.dev/v1alpha1
kind: VideoTrainingJob
metadata: {name: nowhere}
spec:
  model: {name: wan2.1-tiny, weights: {uri: pvc://kinema-workspace/demo/wan2.1-tiny}}
  dataset: {uri: pvc://kinema-workspace/demo/videos}
  storage: {uri: pvc://kinema-workspace/kinema}
  defaults: {pool: h100}
"""

# What differs from run to run, and how it is written to be compared.
VARIABLE = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UID"),
    (re.compile(r"(?<=[:/-])[0-9a-f]{8}\b|\b[0-9a-f]{16}\b|\b[0-9a-f]{20}\b"), "DIGEST"),
    (re.compile(r"(?<=Resource Version:)\s+\d+"), " NUMBER"),
    (re.compile(r"\b(\d+d)?(\d+h)?(\d+m)?\d+s\b|\b\d+m\b"), "AGE"),
    (re.compile(r"\b(seconds_\w+:)\s+[\d.]+"), r"\1 DURATION"),
    (re.compile(r"\b((?:Checkpoint|Data|Lost|Productive|Queued|Starting):)[ \t]+\d+"), r"\1 DURATION"),
    # A loss: four significant digits.
    (re.compile(r"\b([1-9]\.\d{3}|0\.[1-9]\d{3}|\d\d\.\d\d)\b"), "LOSS"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """One command of the page, and what the page says it prints."""

    command: str
    output: str


def blocks() -> list[Block]:
    return [Block(found["command"], found["output"]) for found in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]


def normalised(text: str) -> list[str]:
    """The lines with everything that differs from run to run replaced, and column widths made equal."""
    for pattern, word in VARIABLE:
        text = pattern.sub(word, text)
    lines = [re.sub(r"-{3,}", "---", re.sub(r"[ \t]+", " ", line).strip()) for line in text.splitlines()]
    # Events of the same second come in any order.
    events = [line for line in lines if line.startswith(("Normal ", "Warning "))]
    return [line for line in lines if line and line not in events] + sorted(events)


@pytest.fixture(scope="module")
def ready(kubectl: Kubectl, wan: Job) -> Kubectl:
    """The jobs that the page shows: one that ended well, one that waits."""
    wan.succeeded()
    kubectl.run("apply", "-f", "-", text=NOWHERE)
    message = "jsonpath={.status.message}"
    until("the job is judged", lambda: kubectl.run("get", "vtj", "nowhere", "-o", message), seconds=60)
    return kubectl


def outputs(kubectl: Kubectl, commands: list[str]) -> dict[str, str]:
    return {command: kubectl.run(*shlex.split(command)[1:]) for command in commands}


def test_the_page_shows_the_four_commands() -> None:
    verbs = {shlex.split(block.command)[1] for block in blocks()}
    assert {"get", "describe", "explain", "wait"} <= verbs


def test_the_page_shows_what_kubectl_prints(ready: Kubectl) -> None:
    page = blocks()
    real = outputs(ready, [block.command for block in page])
    if os.environ.get("UPDATE_DOCS"):
        write(PAGE, lambda command: real[command])
        return
    for block in page:
        assert normalised(real[block.command]) == normalised(block.output), (
            f"`{block.command}` prints something else now; UPDATE_DOCS=1 make test-cluster writes it into {PAGE.name}"
        )


def write(page: Path, output: Callable[[str], str]) -> None:
    """Replace the output of every block."""

    def block(found: re.Match[str]) -> str:
        text = "\n".join(line.rstrip() for line in output(found["command"]).strip().splitlines())
        return f"<!-- $ {found['command']} -->\n```\n{text}\n```\n"

    page.write_text(BLOCK.sub(block, page.read_text(encoding="utf-8")), encoding="utf-8")


def test_a_job_that_cannot_run_says_why(ready: Kubectl) -> None:
    shown = ready.run("get", "vtj", "nowhere", "-o", "wide")
    assert "Pending" in shown
    assert "there is no TrainingPool h100; this cluster has cpu" in shown
    assert Stage.CHECK.value not in ready.run("get", "jobs", "-l", "kinema.dev/job=nowhere", "-o", "name")
    ready.run("delete", "vtj", "nowhere")
