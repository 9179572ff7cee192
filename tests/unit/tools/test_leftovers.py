# SPDX-License-Identifier: Apache-2.0
"""Finding what a cluster left on the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_cluster import leftovers
from kinema_cluster.leftovers import cgroup_folders, mounts_under, unescaped
from kinema_cluster.paths import Layout

MOUNTINFO = """\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:30 / /state/kubelet rw - ext4 /dev/vda rw
31 30 0:31 / /state/kubelet/pods/a/volumes/secret rw - tmpfs tmpfs rw
32 22 0:32 / /state-of-another rw - tmpfs tmpfs rw
33 22 0:33 / /state/with\\040blank rw - tmpfs tmpfs rw
"""


def test_mounts_below_come_first_and_neighbours_not_at_all() -> None:
    assert mounts_under(MOUNTINFO, [Path("/state")]) == [
        "/state/with blank",
        "/state/kubelet/pods/a/volumes/secret",
        "/state/kubelet",
    ]


@pytest.mark.parametrize(
    ("raw", "path"), [("/a\\040b", "/a b"), ("/a\\134040b", "/a\\040b"), ("/a\\011b", "/a\tb"), ("/plain", "/plain")]
)
def test_mount_points_are_unescaped_once(raw: str, path: str) -> None:
    assert unescaped(raw) == path


def test_cgroups_of_either_version() -> None:
    first = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    second = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\ntmpfs /run tmpfs rw 0 0\n"
    names = [str(path) for path in cgroup_folders(first)]
    assert names == ["/sys/fs/cgroup/cpu/kubepods", "/sys/fs/cgroup/memory/kubepods"]
    assert cgroup_folders(second) == [Path("/sys/fs/cgroup/kubepods")]


def test_what_was_there_before_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    monkeypatch.setattr(leftovers, "ELSEWHERE", (str(old), str(new)))
    absent = leftovers.absent()
    (new / "deep").mkdir(parents=True)
    leftovers.remove_elsewhere(absent)
    assert old.is_dir()
    assert not new.exists()


def test_a_record_cannot_make_us_remove_other_paths(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    leftovers.remove_elsewhere([str(tmp_path / "precious")])
    assert (tmp_path / "precious").is_dir()


def test_sockets_of_killed_shims_are_found_by_their_bundles(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    bundle = layout.containerd / "state" / "io.containerd.runtime.v2.task" / "k8s.io" / "abc"
    bundle.mkdir(parents=True)
    ours, other = tmp_path / "s" / "1", tmp_path / "s" / "2"
    ours.parent.mkdir()
    ours.touch()
    other.touch()
    (bundle / "address").write_text(f"unix://{ours}")
    leftovers.remove_shim_sockets(layout)
    assert not ours.exists()
    assert other.exists()
