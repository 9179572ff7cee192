# SPDX-License-Identifier: Apache-2.0
"""Artifacts: complete with their manifest, and the first one wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_api.exits import Exit, StageError
from kinema_api.names import Stage
from kinema_stage import artifact
from kinema_stage.workspace import FolderWorkspace


def manifest(job: str) -> artifact.Manifest:
    return artifact.Manifest(stage=Stage.PREPARE, key="abc", job=job, counts={"clips": 2}, details={"x": [1]})


def test_the_first_manifest_wins(tmp_path: Path) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path}")
    assert artifact.published(workspace, "a") is None
    first = artifact.publish(workspace, "a", manifest("ns/first"))
    second = artifact.publish(workspace, "a", manifest("ns/second"))
    assert first == second == artifact.published(workspace, "a")
    assert second.job == "ns/first"
    end = artifact.existing(workspace, "a")
    assert end is not None
    assert (end.code, end.reason, end.counts, end.digest) == (0, "ArtifactExists", {"clips": 2}, first.digest)
    assert end.message.startswith("made by ns/first at 2")


def test_sizes_leave_the_manifest_out(tmp_path: Path) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path}")
    workspace.write("a/deep/x", b"123")
    artifact.publish(workspace, "a", manifest("ns/x"))
    assert artifact.sizes(workspace, "a") == {"deep/x": 3}


def test_a_damaged_manifest_says_what_to_delete(tmp_path: Path) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path}")
    workspace.write("artifacts/prepare/k/_SUCCESS.json", b"{}")
    with pytest.raises(StageError, match=r"delete the folder artifacts/prepare/k") as caught:
        artifact.published(workspace, "artifacts/prepare/k")
    assert caught.value.code is Exit.STORAGE
