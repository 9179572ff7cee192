# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint counts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kinema_api.exits import StageError
from kinema_api.names import Stage
from kinema_stage.artifact import Manifest, publish
from kinema_stage.workspace import Workspace
from kinema_trainer.checkpoints import complete, folder_of, newest, remove_rest, require

ROOT = "jobs/local/run/checkpoints"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(f"file://{tmp_path}")


def write(workspace: Workspace, step: int, *, done: bool = True) -> str:
    folder = folder_of(ROOT, step)
    workspace.write(f"{folder}/__0_0.distcp", b"weights")
    if done:
        files = {"__0_0.distcp": 7}
        details = {"consumed": 4 * step}
        publish(workspace, folder, Manifest(stage=Stage.TRAIN, key="k", job="j", files=files, details=details))
    return folder


def test_the_newest_complete_one_counts(workspace: Workspace) -> None:
    assert newest(workspace, ROOT) is None
    write(workspace, 100_000_000)
    write(workspace, 99_999_999)
    write(workspace, 100_000_001, done=False)
    found = newest(workspace, ROOT)
    assert found is not None
    assert (found.position.step, found.position.consumed) == (100_000_000, 400_000_000)


def test_a_damaged_one_is_passed_over_with_a_warning(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    write(workspace, 2)
    broken = write(workspace, 4)
    workspace.write(f"{broken}/__0_0.distcp", b"weig")
    lost = write(workspace, 6)
    workspace.delete(f"{lost}/__0_0.distcp")
    with caplog.at_level(logging.WARNING):
        found = newest(workspace, ROOT)
    assert found is not None
    assert found.position.step == 2
    assert [record.message for record in caplog.records] == [
        f"{folder} is damaged (__0_0.distcp): an older checkpoint is used" for folder in (broken, lost)
    ]


def test_what_cannot_be_resumed_is_removed_and_nothing_else(workspace: Workspace) -> None:
    kept = [write(workspace, 2), write(workspace, 4)]
    write(workspace, 3, done=False)
    workspace.write(f"{write(workspace, 6)}/__0_0.distcp", b"")
    workspace.write(f"{ROOT}/notes.txt", b"mine")
    remove_rest(workspace, ROOT, newest(workspace, ROOT))
    assert [found.folder for found in complete(workspace, ROOT)] == kept
    assert {path.split("/")[4] for path in workspace.list(ROOT)} == {"step-00000002", "step-00000004", "notes.txt"}


def test_a_run_without_checkpoints_says_what_to_do(workspace: Workspace) -> None:
    write(workspace, 2, done=False)
    with pytest.raises(StageError, match="has no complete checkpoint: run the train stage first"):
        require(workspace, ROOT)
