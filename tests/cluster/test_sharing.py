# SPDX-License-Identifier: Apache-2.0
"""Jobs that share a workspace never do the same work twice."""

from __future__ import annotations

from collections import Counter

import pytest

from kinema_api.names import Stage
from kinema_api.status import StageState

from tests.cluster.jobs import NO_RESULT, Job, Jobs, sidecars

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_a_second_job_over_the_same_dataset_skips_what_is_there(wan: Job, second: Job) -> None:
    wan.succeeded()
    status = second.succeeded()
    for stage in (Stage.PREPARE, Stage.FEATURES, Stage.CONVERT):
        found = second.stage(stage)
        assert found.state is StageState.SKIPPED
        assert found.reason == "ArtifactExists"
        assert found.message.endswith("exists already")
        assert found.attempts == []
    assert wan.status.resolved is not None and status.resolved is not None
    assert status.resolved.keys == wan.status.resolved.keys
    assert second.folder != wan.folder
    events = second.kubectl.run("get", "events", "--field-selector", f"involvedObject.uid={second.uid}")
    assert "StageSkipped" in events


def test_of_two_jobs_at_once_one_encodes(jobs: Jobs) -> None:
    root = jobs.root("at-once")
    stages = {**NO_RESULT, "train": {"steps": 1}}
    both = [jobs.start(f"at-once-{number}", root=root, stages=stages) for number in (1, 2)]
    for job in both:
        job.succeeded()
    keys = [job.status.resolved.keys["features"] for job in both if job.status.resolved]
    assert len(keys) == 2 and keys[0] == keys[1]
    encoded = Counter(key for sidecar in sidecars(both[0]) for key in sidecar["encoded"])
    assert len(encoded) == 4
    assert set(encoded.values()) == {1}
    # Who found the artifact when it checked has skipped the stage and counts nothing.
    counted = [job.stage(Stage.FEATURES).counts.get("encoded", 0) for job in both]
    assert sum(counted) == 4, f"each clip is encoded by one of the jobs: {counted}"
