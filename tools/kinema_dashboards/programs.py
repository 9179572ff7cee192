# SPDX-License-Identifier: Apache-2.0
"""Debian's Prometheus and promtool, unpacked into the cache: nothing is installed, no service is started.

apt knows the mirror. The package is fetched once for each version that apt offers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "prometheus"
CACHE = Path(os.environ.get("KINEMA_CACHE") or Path.home() / ".cache" / "kinema")


class ProgramsError(Exception):
    """Prometheus cannot be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the programs lie."""

    prometheus: Path
    promtool: Path


def ensure(cache: Path = CACHE) -> Programs:
    """The programs of this machine, or else those of the package, fetched if they are not in the cache."""
    found = {name: shutil.which(name) for name in ("prometheus", "promtool")}
    if all(found.values()):
        return Programs(**{name: Path(str(path)) for name, path in found.items()})
    place = cache / "bin"
    there = sorted(place.glob(f"{PACKAGE}-*/usr/bin/promtool"))
    return _programs(there[-1].parent if there else _fetch(place))


def _programs(folder: Path) -> Programs:
    return Programs(prometheus=folder / "prometheus", promtool=folder / "promtool")


def _fetch(place: Path) -> Path:
    """Download, unpack beside, and move into place, so that a cut-off download leaves nothing that looks whole."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ProgramsError(f"Prometheus is missing: install it, so that `{PACKAGE}` and `promtool` are in the PATH")
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{PACKAGE}-", dir=place) as name:
        folder = Path(name)
        if _run(folder, "apt-get", "download", PACKAGE) and os.geteuid() == 0:
            _run(folder, "apt-get", "update", "--quiet")
            _run(folder, "apt-get", "download", PACKAGE)
        packages = sorted(folder.glob(f"{PACKAGE}_*.deb"))
        if not packages:
            raise ProgramsError(f"apt has no package {PACKAGE}: run `apt-get update` as root, and try again")
        unpacked = folder / "unpacked"
        if error := _run(folder, "dpkg-deb", "--extract", str(packages[0]), str(unpacked)):
            raise ProgramsError(f"{packages[0].name} cannot be unpacked: {error}")
        version = packages[0].name.split("_")[1].replace("%3a", "-")
        kept = place / f"{PACKAGE}-{version}"
        shutil.rmtree(unpacked / "usr" / "share", ignore_errors=True)
        if not kept.exists():
            unpacked.rename(kept)
    return kept / "usr" / "bin"


def _run(folder: Path, *command: str) -> str:
    """Run it in a folder; returns what went wrong, empty when nothing did."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""
