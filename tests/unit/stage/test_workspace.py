# SPDX-License-Identifier: Apache-2.0
"""The workspace: files appear whole, and one of many creators wins."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinema_stage.workspace import FolderWorkspace


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    return FolderWorkspace(f"file://{tmp_path}/work")


def test_what_was_written_is_read_and_replaced(workspace: FolderWorkspace) -> None:
    workspace.write("a/b.txt", b"one")
    workspace.write("a/b.txt", b"two")
    assert workspace.read("a/b.txt") == b"two"
    assert workspace.exists("a/b.txt") and workspace.exists("a") and not workspace.exists("a/c")
    assert workspace.uri("a/b.txt") == f"file://{workspace.local('a/b.txt')}"
    with pytest.raises(FileNotFoundError):
        workspace.read("a/c")


def test_of_many_creators_one_wins_and_its_content_stays(workspace: FolderWorkspace) -> None:
    count = 16
    start = threading.Barrier(count)

    def create(number: int) -> bool:
        start.wait()
        return workspace.create("claims/x", str(number).encode())

    for _ in range(10):
        with ThreadPoolExecutor(count) as pool:
            won = list(pool.map(create, range(count)))
        assert won.count(True) == 1
        assert workspace.read("claims/x") == str(won.index(True)).encode()
        workspace.delete("claims/x")
    assert os.listdir(workspace.local("claims")) == []


def test_a_link_whose_answer_was_lost_counts_as_ours(
    workspace: FolderWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert workspace.create("x", b"mine")
    assert workspace.read("x") == b"mine"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    workspace: FolderWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write("a", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        workspace.write("a", b"new")
    assert workspace.read("a") == b"old"
    assert os.listdir(workspace.local("")) == ["a"]


def test_a_listing_is_sorted_and_hides_files_being_written(workspace: FolderWorkspace) -> None:
    workspace.write("b/2", b"")
    workspace.write("b/1/x", b"")
    workspace.write("a", b"")
    workspace.local("b/.kinema-tmp-123").write_bytes(b"half")
    assert workspace.list("b") == ["b/1/x", "b/2"]
    assert workspace.list("") == ["a", "b/1/x", "b/2"]
    assert workspace.list("missing") == []


def test_delete_takes_files_folders_and_nothing(workspace: FolderWorkspace) -> None:
    workspace.write("a/b/c", b"")
    workspace.write("a/d", b"")
    workspace.delete("a/b")
    assert workspace.list("a") == ["a/d"]
    workspace.delete("a/d")
    workspace.delete("a/d")
    workspace.delete("never/was")
    assert workspace.list("") == []


def test_upload_copies_a_file_or_a_folder(workspace: FolderWorkspace, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "one").write_bytes(b"1")
    (source / "deep" / "two").write_bytes(b"2")
    workspace.upload(source, "copy")
    workspace.upload(source / "one", "single/uno")
    assert workspace.list("") == ["copy/deep/two", "copy/one", "single/uno"]
    assert workspace.read("copy/deep/two") == b"2"


def test_a_folder_filled_aside_appears_whole_or_not_at_all(workspace: FolderWorkspace) -> None:
    with workspace.scratch("a/b") as scratch:
        (scratch / "deep").mkdir()
        (scratch / "deep/x").write_bytes(b"first")
        assert workspace.list("a") == []
        assert workspace.place(scratch, "a/b")
    with workspace.scratch("a/b") as scratch:
        (scratch / "x").write_bytes(b"second")
        assert not workspace.place(scratch, "a/b")
    assert workspace.list("") == ["a/b/deep/x"]
    assert os.listdir(workspace.local("a")) == ["b"]


def test_what_killed_processes_left_of_a_folder_is_removed(
    workspace: FolderWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write("a/b/x", b"")
    workspace.write("a/bc/x", b"")
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        workspace.delete("a/b")
        workspace.delete("a/bc")
        with workspace.scratch("a/b"):
            pass
    assert len(os.listdir(workspace.local("a"))) == 3
    with workspace.scratch("a/b"):
        pass
    (other,) = os.listdir(workspace.local("a"))
    assert other.startswith(".kinema-tmp-bc-"), "what belongs to another folder stays"


def test_a_sweep_takes_what_was_left_in_the_folder_itself(workspace: FolderWorkspace) -> None:
    workspace.write("a/x", b"")
    workspace.write("a/deep/.kinema-tmp-1", b"")
    workspace.write("a/.kinema-tmp-2", b"half")
    workspace.write("a/.kinema-tmp-3/y", b"deleted")
    workspace.sweep("a")
    workspace.sweep("missing")
    assert sorted(os.listdir(workspace.local("a"))) == ["deep", "x"]
    assert os.listdir(workspace.local("a/deep")) == [".kinema-tmp-1"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd"])
def test_a_path_stays_inside(workspace: FolderWorkspace, path: str) -> None:
    with pytest.raises(ValueError, match="relative"):
        workspace.write(path, b"")


@pytest.mark.parametrize("uri", ["/plain", "pvc://claim/a", "file://relative"])
def test_an_address_is_a_file_address(uri: str) -> None:
    with pytest.raises(ValueError, match="file:///"):
        FolderWorkspace(uri)
