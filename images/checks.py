# SPDX-License-Identifier: Apache-2.0
"""What every image must be. Run inside it by its own build; needs nothing but Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path

LOCKS = Path("/opt/kinema/locks")
OWN = "kinema-"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")
# Left by an installation that does not clean up, or by a build that lets its machine's CA in.
LEFTOVERS = ("/build", "/run/ca.crt", "/var/cache/pip", "/var/cache/uv")


def canonical(name: str) -> str:
    """The one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Distributions and versions of a requirements lock."""
    return {canonical(found[1]): found[2] for line in text.splitlines() if (found := PIN.match(line))}


def installed() -> dict[str, str]:
    """The distributions of the image's environment; what a base brings on PYTHONPATH is its own affair."""
    found = metadata.distributions(path=[sysconfig.get_path("purelib")])
    return {canonical(dist.metadata["Name"]): dist.version for dist in found}


def wrong_versions(locked: dict[str, str], present: dict[str, str]) -> Iterator[str]:
    """How what is installed differs from what was locked; our own packages are in no lock."""
    for name, version in sorted(locked.items()):
        if present.get(name) != version:
            yield f"{name} is {present.get(name, 'missing')}, the lock says {version}"
    for name in sorted(present.keys() - locked.keys()):
        if not name.startswith(OWN):
            yield f"{name} is installed and in no lock"


def failed_imports(modules: Sequence[str]) -> Iterator[str]:
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            yield f"import {name}: {error}"


def missing_attributes(names: Sequence[str]) -> Iterator[str]:
    """Of `module:attribute` those that cannot be had; diffusers and transformers load each class on first use."""
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            getattr(import_module(module), attribute)
        except (AttributeError, ImportError, RuntimeError) as error:
            yield f"{name}: {error}"


def failed_commands(commands: Sequence[str]) -> Iterator[str]:
    for command in commands:
        try:
            done = subprocess.run([command, "--help"], capture_output=True, text=True)
        except OSError as error:
            yield f"{command}: {error}"
            continue
        if done.returncode:
            yield f"{command} --help exits with {done.returncode}: {done.stderr.strip()[-500:]}"


def filled(path: Path) -> bool:
    """Whether something is there; some builders leave an empty mount point behind."""
    if path.is_dir():
        return not os.access(path, os.R_OK) or any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def unsafe() -> Iterator[str]:
    """What a restricted pod could not run, or what the build should not have left."""
    if os.getuid() == 0:
        yield "the image's user is root"
    for name in LEFTOVERS:
        if filled(Path(name)):
            yield f"the build left {name}"
    for name in ("/opt/kinema", "/opt/kinema/bin/python"):
        if os.access(name, os.W_OK):
            yield f"{name} can be written by the image's user"


def check(
    *, imports: Sequence[str], absent: Sequence[str], commands: Sequence[str], attributes: Sequence[str] = ()
) -> None:
    """Print what is wrong and exit 1, or say what was found in order."""
    locked: dict[str, str] = {}
    for lock in sorted(LOCKS.glob("*.txt")):
        locked |= pins(lock.read_text())
    present = installed()
    problems = [*wrong_versions(locked, present), *failed_imports(imports), *missing_attributes(attributes)]
    problems += [*failed_commands(commands), *unsafe()]
    problems += [f"{name} has no place in this image" for name in absent if canonical(name) in present]
    for problem in problems:
        print(f"check: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"check: Python {sys.version.split()[0]}, {len(present)} distributions as locked, {len(imports)} imports")
