# SPDX-License-Identifier: Apache-2.0
"""Deleting a job takes everything that ran for it and nothing that it made."""

from __future__ import annotations

import pytest
from kinema_demo.workspace import Shell, inside

from kinema_api.names import Stage

from tests.cluster.jobs import NO_RESULT, Job, Jobs
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def stages(steps: int) -> dict[str, object]:
    return {**NO_RESULT, "train": {"steps": steps, "checkpoint": {"everySteps": 10}}}


def test_a_deleted_job_leaves_no_child_and_a_new_one_of_its_name_is_not_confused(
    jobs: Jobs, wan: Job, shared: str, workspace: Shell
) -> None:
    wan.succeeded()
    first = jobs.start("again", root=shared, stages=stages(100_000))
    first.running(Stage.TRAIN)
    until("it trains", lambda: workspace.exists(f"{first.folder}/checkpoints/step-00000010/_SUCCESS.json"), seconds=240)
    folder = first.folder
    assert len(first.children()) >= 4, "jobs, and pods of a gang"

    # At once: children of the first are still there, under the names that the second one wants.
    first.delete(wait=True)
    second = jobs.start("again", root=shared, stages=stages(20))
    assert second.uid != first.uid
    until("the first one's children are gone", lambda: not first.children(), seconds=120)
    services = first.kubectl.list("services", labels={"training.kubeflow.org/job-name": "again-train-1"})
    status = second.succeeded()
    assert second.stage(Stage.TRAIN).counts["steps"] == 20, "it did not go on from the first one's checkpoint"
    assert status.restarts == 0
    assert second.folder != folder
    assert all(owner["uid"] != first.uid for service in services for owner in service["metadata"]["ownerReferences"])

    assert workspace.exists(f"{folder}/checkpoints/step-00000010/_SUCCESS.json"), "the workspace stays"
    second.delete()
    until("the second one's children are gone", lambda: not second.children(), seconds=120)
    assert workspace.exists(f"{inside(status.workspace or '')}/metrics.jsonl")
    leftovers = second.kubectl.run("get", "jobs,pytorchjobs,pods,services", "-o", "name")
    assert "again-" not in leftovers
