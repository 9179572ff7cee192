# SPDX-License-Identifier: Apache-2.0
"""`kinema gc` in a cluster frees what no job refers to, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from kinema_demo.workspace import inside

from kinema_api.names import Stage, artifact_folder

from tests.cluster.jobs import NO_RESULT, Jobs

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


def test_what_a_job_refers_to_stays_until_the_job_is_gone(jobs: Jobs, images: Mapping[str, str]) -> None:
    root = jobs.root("gc")
    job = jobs.start("collected", root=root, stages={**NO_RESULT, "train": {"steps": 1}})
    resolved = job.succeeded().resolved
    assert resolved is not None
    mine = [artifact_folder(stage, resolved.keys[stage]) for stage in (Stage.PREPARE, Stage.FEATURES)]
    stray = artifact_folder(Stage.PREPARE, "stray")

    def there() -> set[str]:
        return set(jobs.workspace.run("sh", "-c", f"cd {inside(root)} && ls -d artifacts/*/*").split())

    def gc(*options: str) -> str:
        command = [sys.executable, "-m", "kinema_cli", "gc", "--storage", root, "-n", jobs.kubectl.namespace]
        done = subprocess.run(
            [*command, "--min-age", "0", *options],
            env={**os.environ, "KUBECONFIG": str(jobs.kubectl.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    jobs.workspace.run("sh", "-c", f"cd {inside(root)} && cp -r {mine[0]} {stray}")
    assert stray in gc("--dry-run") and stray in there(), "a dry run deletes nothing"
    assert "freed" in gc("--yes")
    assert stray not in there() and set(mine) <= there(), "what a job refers to stays"

    job.delete()
    # A claim that was held within the last ten minutes protects its folder.
    jobs.workspace.run("sh", "-c", f"cd {inside(root)} && find claims -exec touch -d @0 {{}} +")
    gone = ("--runs", "--image", images["stage"])
    listed = gc("--dry-run", *gone)
    assert all(folder in listed for folder in mine)
    gc("--yes", *gone)
    assert jobs.workspace.run("sh", "-c", f"cd {inside(root)} && find artifacts jobs -type f").split() == []
