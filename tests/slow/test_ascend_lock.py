# SPDX-License-Identifier: Apache-2.0
"""The Ascend image cannot be built here; that its lock can be installed on an Ascend machine is seen by asking uv."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK = REPOSITORY / "images/wan2.1-ascend/requirements.txt"
MACHINE = ("--python-platform", "aarch64-manylinux_2_28", "--python-version", "3.11")
CACHE = Path(os.environ.get("KINEMA_CACHE") or Path.home() / ".cache" / "kinema")

pytestmark = pytest.mark.slow


def uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(CACHE / "uv-venv/bin/uv"), "pip", *arguments]
    environment = {"UV_CACHE_DIR": str(CACHE / "uv-cache"), **os.environ}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)


def test_the_lock_resolves(tmp_path: Path) -> None:
    again = tmp_path / "requirements.txt"
    again.write_text(LOCK.read_text())
    done = uv(
        "compile", "--quiet", "--no-header", "--no-annotate", *MACHINE, "-o", str(again), str(LOCK.with_suffix(".in"))
    )
    assert done.returncode == 0, done.stderr
    assert set(again.read_text().split()) == {word for word in LOCK.read_text().split() if "==" in word}


def test_every_pin_has_a_wheel_for_the_machine(tmp_path: Path) -> None:
    target = str(tmp_path / "site")
    done = uv(
        "install",
        "--dry-run",
        "--only-binary",
        ":all:",
        "--require-hashes",
        *MACHINE,
        "--target",
        target,
        "-r",
        str(LOCK),
    )
    assert done.returncode == 0, done.stderr
    assert "torch-npu==2.14.0" in done.stderr
