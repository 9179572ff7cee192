# SPDX-License-Identifier: Apache-2.0
"""What a cluster leaves on the machine besides its own processes: containers, mounts, cgroups, files elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from kinema_cluster.api import wait_for
from kinema_cluster.errors import ClusterError
from kinema_cluster.network import run
from kinema_cluster.paths import Layout
from kinema_cluster.processes import kill_pids

KUBEPODS = "kubepods"
# Paths outside of the cluster's folder that its programs make, and that cannot be moved. Parents come after children.
ELSEWHERE = (
    "/run/containerd",
    "/run/xtables.lock",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)


def absent() -> list[str]:
    """Those of the paths elsewhere that the machine does not have yet, and that `down` may therefore remove."""
    return [path for path in ELSEWHERE if not os.path.lexists(path)]


def cgroup_folders(mounts: str, name: str = KUBEPODS) -> list[Path]:
    """The pods' cgroup in every hierarchy, from the text of /proc/self/mounts."""
    found = []
    for line in mounts.splitlines():
        fields = line.split()
        if fields[2] in {"cgroup", "cgroup2"}:
            found.append(Path(fields[1]) / name)
    return found


def mounts_under(mountinfo: str, roots: Iterable[Path]) -> list[str]:
    """Mount points at or below `roots`, from the text of /proc/self/mountinfo, the last mounted first."""
    prefixes = [str(root) for root in roots]
    points = [unescaped(line.split()[4]) for line in mountinfo.splitlines()]
    return [
        point
        for point in reversed(points)
        if any(point == prefix or point.startswith(prefix + "/") for prefix in prefixes)
    ]


def unescaped(text: str) -> str:
    """A path as the kernel writes it into mountinfo: blanks and backslashes are octal."""
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def pod_cgroups() -> list[Path]:
    return [folder for folder in cgroup_folders(Path("/proc/self/mounts").read_text()) if folder.is_dir()]


def kill_containers(layout: Layout) -> None:
    """Kill the processes of all pods, then the shims that kept them."""
    roots = pod_cgroups()

    def pids() -> set[int]:
        found: set[int] = set()
        # os.walk, unlike a glob, bears with folders that vanish under it.
        for folder, _, _ in itertools.chain.from_iterable(os.walk(root) for root in roots):
            with contextlib.suppress(OSError):
                found.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
        return found - {0}

    # More than once: a container may fork while it is killed.
    for _ in range(5):
        if not (left := pids()):
            break
        kill_pids(left)
    kill_pids(shims(layout))


def shims(layout: Layout) -> list[int]:
    """The containerd-shims that belong to this cluster's containerd socket."""
    address = str(layout.containerd_socket).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if arguments[0].endswith(b"containerd-shim-runc-v2") and address in arguments:
                    found.append(int(entry.name))
    return found


def remove_shim_sockets(layout: Layout) -> None:
    """Sockets that killed shims left in /run/containerd; each bundle names its own."""
    for file in (layout.containerd / "state").glob("io.containerd.runtime.v2.task/*/*/address"):
        socket = file.read_text().strip().removeprefix("unix://")
        Path(socket).unlink(missing_ok=True)


def unmount(roots: Iterable[Path]) -> None:
    """Unmount all below `roots`; ClusterError if something stays, for then nothing there may be deleted."""
    roots = list(roots)
    for point in _mounted(roots):
        run("umount", "--lazy", point)
    if left := _mounted(roots):
        raise ClusterError(f"still mounted: {', '.join(left)}. Unmount by hand, then run `tools/cluster down` again")


def _mounted(roots: Iterable[Path]) -> list[str]:
    return mounts_under(Path("/proc/self/mountinfo").read_text(), roots)


def remove_cgroups() -> None:
    for folder in pod_cgroups():

        def gone(folder: Path = folder) -> bool:
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            return not folder.exists()

        # A cgroup is busy for a moment after its last process died.
        wait_for(f"{folder} was not empty", gone, seconds=10)


def pod_links() -> list[str]:
    """Host ends of the pods' veth pairs: those that carry a route of the pods' network."""
    return [line.split()[2] for line in run("ip", "route", "show", "root", "10.244.0.0/16").splitlines()]


def remove_links() -> None:
    """A pair goes when its pod's network namespace is freed, a moment after the last process in it."""
    for link in pod_links():
        with contextlib.suppress(ClusterError):
            run("ip", "link", "del", link)


def remove_elsewhere(were_absent: Iterable[str]) -> None:
    """Remove the paths outside of the cluster's folder that were not there before it."""
    allowed = [path for path in ELSEWHERE if path in set(were_absent)]
    unmount([Path(path) for path in allowed])
    for path in allowed:
        if path == "/run/containerd" and os.path.exists(f"{path}/containerd.sock"):
            # Another containerd was started since, and lives there.
            continue
        remove(Path(path))


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
