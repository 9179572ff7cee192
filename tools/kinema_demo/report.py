# SPDX-License-Identifier: Apache-2.0
"""Why a job failed: what a person would look up next, in one text."""

from __future__ import annotations

from kinema_api.names import LABEL_JOB_UID, LABEL_STAGE
from kinema_api.status import StageState
from kinema_demo.follow import KIND
from kinema_demo.job import JobView, StageView
from kinema_demo.kubectl import Kubectl

LOG_LINES = 40


def explain(kubectl: Kubectl, job: JobView) -> str:
    """Status, events and the last lines of the failed stage's log."""
    parts = [
        f"vtj/{job.name} {job.phase}: {job.message}",
        "",
        kubectl.attempt("get", KIND, job.name, "-o", "wide").stdout,
    ]
    parts += ["Stages:", *(f"  {_line(stage)}" for stage in job.stages), ""]
    events = kubectl.attempt(
        "get", "events", "--field-selector", f"involvedObject.uid={job.uid}", "--sort-by=.metadata.creationTimestamp"
    )
    parts += ["Events:", events.stdout]
    failed = next((stage for stage in job.stages if stage.state == StageState.FAILED.value), None)
    if failed is not None:
        selector = f"{LABEL_JOB_UID}={job.uid},{LABEL_STAGE}={failed.name}"
        logs = kubectl.attempt("logs", "-l", selector, f"--tail={LOG_LINES}", "--prefix", "--max-log-requests=20")
        parts += [f"Last lines of {failed.name}:", logs.stdout or logs.stderr]
    return "\n".join(parts)


def _line(stage: StageView) -> str:
    said = stage.message or stage.reason
    return f"{stage.name:9} {stage.state:10} {stage.attempts} attempts  {said}".rstrip()
