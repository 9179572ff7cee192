# SPDX-License-Identifier: Apache-2.0
"""What holds for every file of the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
TEXT_LIMIT = 1 << 20
# Spelt apart, so that this file does not name them either.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("proxy", "golang", "org"),
        ("sum", "golang", "org"),
        ("registry", "npmjs", "org"),
        ("repo1", "maven", "org"),
        ("crates", "io"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("snapshot", "debian", "org"),
    )
]
# Where this checkout lies and whose home this is: nobody else's business.
MACHINE_PATHS = (str(REPOSITORY), str(Path.home() / ".cache"))
LONGEST_MODULE = 420
HEADER = "SPDX-License-Identifier: Apache-2.0"


def tracked() -> list[Path]:
    """The files of the repository, those not yet committed included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()]


def texts() -> list[tuple[str, str]]:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if len(data) <= TEXT_LIMIT and b"\0" not in data:
            found.append((str(path.relative_to(REPOSITORY)), data.decode()))
    return found


def source(name: str) -> bool:
    return name.endswith((".py", ".go", ".c", ".sh")) or name.endswith("Dockerfile") or name == "Makefile"


def test_the_tree_is_seen() -> None:
    names = {name for name, _ in texts()}
    assert {"Makefile", "LICENSE", "requirements/dev.txt", "crds/pyproject.toml"} <= names


@pytest.mark.parametrize("host", REGISTRIES)
def test_no_package_registry_is_named(host: str) -> None:
    assert [name for name, text in texts() if host in text] == []


@pytest.mark.parametrize("path", MACHINE_PATHS)
def test_no_path_of_this_machine(path: str) -> None:
    assert [name for name, text in texts() if re.search(re.escape(path) + r"\b", text)] == []


def test_sources_name_their_licence() -> None:
    missing = [name for name, text in texts() if source(name) and HEADER not in text[:200]]
    assert missing == []


def test_modules_stay_short() -> None:
    long = [
        (name, lines)
        for name, text in texts()
        if name.endswith(".py") and not name.startswith("tests/") and (lines := text.count("\n")) > LONGEST_MODULE
    ]
    assert long == []


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
    assert [name for name, text in texts() if marks.search(text)] == []
