# SPDX-License-Identifier: Apache-2.0
"""Debian packages that the cluster needs, installed without starting any service of theirs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from kinema_cluster.errors import ClusterError
from kinema_cluster.processes import SYSTEM_PATH

# Command or file that must be there, and the package that brings it.
FULL = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "etcd": "etcd-server",
    "openssl": "openssl",
    "umount": "mount",
}
CONTROL_PLANE = {"etcd": "etcd-server", "openssl": "openssl", "unshare": "util-linux"}
POLICY = Path("/usr/sbin/policy-rc.d")
REFUSE_SERVICES = "#!/bin/sh\nexit 101\n"
SERVICES = {"containerd": "containerd", "etcd-server": "etcd"}


def missing(needed: dict[str, str]) -> list[str]:
    """The packages whose command or file is not there."""
    return sorted({package for thing, package in needed.items() if not _present(thing)})


def _present(thing: str) -> bool:
    return os.path.exists(thing) if thing.startswith("/") else shutil.which(thing, path=SYSTEM_PATH) is not None


def ensure(needed: dict[str, str], *, progress: Callable[[str], None] = print) -> None:
    """Install what is missing; ClusterError that names the command when this user may not."""
    packages = missing(needed)
    if not packages:
        return
    command = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ClusterError(f"the local cluster needs Debian packages: run `{command}` as root")
    progress(f"installing {', '.join(packages)} ...")
    with _services_refused():
        _apt("update", "--quiet")
        _apt("install", "--quiet", "--yes", "--no-install-recommends", *packages)
    for package in packages:
        if package in SERVICES and Path("/run/systemd/system").is_dir():
            # The package would start its service at the next boot; the cluster runs these programs itself.
            subprocess.run(["systemctl", "disable", "--quiet", SERVICES[package]], check=False)


def _apt(*arguments: str) -> None:
    env = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", *arguments], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ClusterError(f"apt-get {' '.join(arguments)} failed:\n{done.stderr.strip()}")


@contextlib.contextmanager
def _services_refused() -> Iterator[None]:
    """Debian's own way to say that an installation may start nothing; an existing policy is left in force."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text(REFUSE_SERVICES)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
