# SPDX-License-Identifier: Apache-2.0
"""The state file of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_cluster import processes, record
from kinema_cluster.errors import ClusterError
from kinema_cluster.record import Record, boot_id, load, write_atomically


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Record(
        path=tmp_path / "s" / "cluster.json", kind="full", boot=boot_id(), details={"ports": [1]}, ready=True
    )
    written.processes["etcd"] = processes.Process(name="etcd", pid=1, started=5, argv=("etcd", "--x"))
    written.save()
    assert load(written.path) == written


def test_after_a_reboot_nothing_lives_whatever_the_pids_say(tmp_path: Path) -> None:
    process = processes.start("sleep", ["sleep", "1000"], log=tmp_path / "log")
    try:
        found = Record(path=tmp_path / "c", kind="full", boot=boot_id(), processes={"sleep": process})
        assert found.living() == {"sleep": process}
        found.boot = "another boot"
        assert found.living() == {}
    finally:
        processes.stop([process], grace=0)


def test_no_record_is_none_and_a_broken_one_is_said(tmp_path: Path) -> None:
    assert load(tmp_path / "none") is None
    (tmp_path / "broken").write_text('{"kind": "fu')
    with pytest.raises(ClusterError, match="damaged"):
        load(tmp_path / "broken")


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, "one")
    write_atomically(path, "two", mode=0o644)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_one_command_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    with record.locked(tmp_path / "state"), record.locked(tmp_path / "other"):
        locks = list((tmp_path / "cache" / "locks").iterdir())
    assert len(locks) == 2
