# SPDX-License-Identifier: Apache-2.0
"""What can be seen of a cluster from outside: taken before and after, to show that nothing stayed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from kinema_cluster import leftovers, network

FOLDERS = ("/etc", "/opt", "/run", "/usr/libexec", "/var/lib", "/var/log")
# What others than a cluster write while it runs: image builds, package lists.
OTHERS = ("/run/containers", "/run/lock", "/var/lib/apt", "/var/lib/containers", "/var/lib/dpkg", "/var/log/apt")


def snapshot(state: Path) -> dict[str, set[str]]:
    """Processes, mounts, network, iptables, cgroups, kernel settings and files, each as a set of lines."""
    return {
        "processes": set(processes(state).values()),
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "addresses": _lines("ip", "-oneline", "address"),
        "links": set(os.listdir("/sys/class/net")),
        "routes": _lines("ip", "route", "show", "table", "all"),
        "rules": {line for family in network.FAMILIES for line in rules(network.run(f"{family}-save"))},
        "cgroups": {str(folder) for folder in leftovers.pod_cgroups()},
        "namespaces": set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set(),
        "sysctls": {f"{name}={value}" for name, value in network.read_sysctls().items()},
        "files": files(),
    }


def processes(state: Path) -> dict[int, str]:
    """The processes that name the cluster's folder, or live in a pod's cgroup: never those of a control plane."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            in_pod = f"/{leftovers.KUBEPODS}/" in (entry / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if in_pod or f"{state}/" in command:
            found[int(entry.name)] = command
    return found


def rules(saved: str) -> set[str]:
    """Rules and own chains of iptables-save; the built-in chains of an unused table are no rule."""
    own_chain = re.compile(r"^:\S+ - ")
    return {line.partition(" [")[0] for line in saved.splitlines() if line.startswith("-A") or own_chain.match(line)}


def files() -> set[str]:
    """All paths in the folders where a cluster could leave something."""
    found: set[str] = set()
    for root in FOLDERS:
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if os.path.join(folder, name) not in OTHERS]
            found.update(os.path.join(folder, name) for name in [*folders, *names])
    return found


def _lines(*command: str) -> set[str]:
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
