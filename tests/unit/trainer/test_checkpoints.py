# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint counts."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from kinema_api.exits import StageError
from kinema_api.names import Stage
from kinema_stage import artifact
from kinema_stage.artifact import Manifest, publish
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer.checkpoints import folders
from kinema_trainer.checkpoints.digests import new_digest
from kinema_trainer.checkpoints.folders import (
    DIGESTS,
    complete,
    damaged,
    folder_of,
    newest,
    recorded,
    remove_rest,
    require,
)

ROOT = "jobs/local/run/checkpoints"


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    return FolderWorkspace(f"file://{tmp_path}")


def write(workspace: FolderWorkspace, step: int, *, done: bool = True) -> str:
    folder = folder_of(ROOT, step)
    workspace.write(f"{folder}/__0_0.distcp", b"weights")
    if done:
        files = {"__0_0.distcp": 7}
        details = {"consumed": 4 * step}
        publish(workspace, folder, Manifest(stage=Stage.TRAIN, key="k", job="j", files=files, details=details))
    return folder


def test_the_newest_complete_one_counts(workspace: FolderWorkspace) -> None:
    assert newest(workspace, ROOT) is None
    write(workspace, 100_000_000)
    write(workspace, 99_999_999)
    write(workspace, 100_000_001, done=False)
    found = newest(workspace, ROOT)
    assert found is not None
    assert (found.position.step, found.position.consumed) == (100_000_000, 400_000_000)


def test_a_damaged_one_is_passed_over_with_a_warning(
    workspace: FolderWorkspace, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_what_cannot_be_resumed_is_removed_and_nothing_else(workspace: FolderWorkspace) -> None:
    kept = [write(workspace, 2), write(workspace, 4)]
    write(workspace, 3, done=False)
    workspace.write(f"{write(workspace, 6)}/__0_0.distcp", b"")
    workspace.write(f"{ROOT}/notes.txt", b"mine")
    remove_rest(workspace, ROOT, newest(workspace, ROOT))
    assert [found.folder for found in complete(workspace, ROOT)] == kept
    assert {path.split("/")[4] for path in workspace.list(ROOT)} == {"step-00000002", "step-00000004", "notes.txt"}


def test_a_deletion_that_was_killed_is_brought_to_its_end(
    workspace: FolderWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, doomed = write(workspace, 2), write(workspace, 1)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt(str(folder))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        workspace.delete(doomed)
    assert len(list(workspace.local(ROOT).iterdir())) == 2
    remove_rest(workspace, ROOT, newest(workspace, ROOT))
    assert list(workspace.local(ROOT).iterdir()) == [workspace.local(kept)]


def test_each_checkpoint_is_measured_once_however_many_files_it_has(
    workspace: FolderWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"__{number}_0.distcp": 1 for number in range(8)}
    for step in (2, 4):
        folder = folder_of(ROOT, step)
        for name in files:
            workspace.write(f"{folder}/{name}", b"w")
        publish(
            workspace,
            folder,
            Manifest(stage=Stage.TRAIN, key="k", job="j", files=files, details={"consumed": step}),
        )
    measured: list[str] = []
    original = artifact.sizes

    def sizes(workspace: FolderWorkspace, folder: str) -> dict[str, int]:
        measured.append(folder)
        return original(workspace, folder)

    monkeypatch.setattr(folders, "sizes", sizes)
    assert len(recorded(workspace, ROOT)) == 2
    assert measured == []
    assert len(complete(workspace, ROOT)) == 2
    assert measured == [folder_of(ROOT, 2), folder_of(ROOT, 4)]


def test_a_run_without_checkpoints_says_what_to_do(workspace: FolderWorkspace) -> None:
    write(workspace, 2, done=False)
    with pytest.raises(StageError, match="has no complete checkpoint: run the train stage first"):
        require(workspace, ROOT)


def sealed(workspace: FolderWorkspace, step: int, **contents: bytes) -> str:
    """A checkpoint whose manifest has digests."""
    folder = folder_of(ROOT, step)
    digests: dict[str, str] = {}
    for name, content in contents.items():
        workspace.write(f"{folder}/{name}", content)
        digest = new_digest()
        digest.update(content)
        digests[name] = digest.hexdigest()
    files = {name: len(content) for name, content in contents.items()}
    details = {"consumed": 4 * step, DIGESTS: digests}
    publish(workspace, folder, Manifest(stage=Stage.TRAIN, key="k", job="j", files=files, details=details))
    return folder


def test_changed_content_of_the_same_size_is_found(
    workspace: FolderWorkspace, caplog: pytest.LogCaptureFixture
) -> None:
    sealed(workspace, 2, a=b"weights", b=b"moments")
    folder = sealed(workspace, 4, a=b"weights", b=b"moments")
    (older, newer) = complete(workspace, ROOT)
    assert damaged(workspace, newer) == []
    workspace.write(f"{folder}/b", b"momentz")
    assert [found.position.step for found in complete(workspace, ROOT)] == [2, 4]
    assert damaged(workspace, newer) == ["b"]
    assert damaged(workspace, older) == []
    with caplog.at_level(logging.WARNING):
        assert require(workspace, ROOT).position.step == 2
    assert [record.message for record in caplog.records] == [f"{folder} is damaged (b): an older checkpoint is used"]


def test_processes_share_the_reading_and_together_read_all(workspace: FolderWorkspace) -> None:
    contents = {f"file-{number}": bytes(10 + number) for number in range(7)}
    folder = sealed(workspace, 2, **contents)
    (found,) = complete(workspace, ROOT)
    for name in contents:
        workspace.write(f"{folder}/{name}", b"x" * len(contents[name]))
    shares = [damaged(workspace, found, rank=rank, world=3) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(contents)
    assert sorted(len(share) for share in shares) == [2, 2, 3]


def test_a_file_that_vanished_is_damage(workspace: FolderWorkspace) -> None:
    folder = sealed(workspace, 2, a=b"weights", b=b"moments")
    (found,) = complete(workspace, ROOT)
    workspace.delete(f"{folder}/a")
    assert damaged(workspace, found) == ["a"]
