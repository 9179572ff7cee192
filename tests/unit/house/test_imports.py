# SPDX-License-Identifier: Apache-2.0
"""The import rules forbid what they are meant to forbid."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGES = (
    "kinema_api",
    "kinema_cli",
    "kinema_kube",
    "kinema_operator",
    "kinema_server",
    "kinema_stage",
    "kinema_trainer",
)


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--config", str(folder / ".importlinter")],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Empty packages of our names, under our rules."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    rules = configparser.ConfigParser()
    rules.read(REPOSITORY / ".importlinter")
    for section in rules.sections():
        # Exceptions name modules of ours, which are not here.
        rules.remove_option(section, "ignore_imports")
    engine = rules["importlinter:contract:engine"]
    for layer in engine["layers"].replace("|", " ").split():
        (tmp_path / engine["containers"].strip() / layer).mkdir()
        (tmp_path / engine["containers"].strip() / layer / "__init__.py").write_text("")
    with (tmp_path / ".importlinter").open("w") as file:
        rules.write(file)
    return tmp_path


def test_empty_packages_keep_the_rules(house: Path) -> None:
    done = linted(house)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("kinema_api", "kinema_stage"),
        ("kinema_api", "kinema_kube"),
        ("kinema_stage", "kinema_trainer"),
        ("kinema_stage", "kubernetes"),
        ("kinema_stage", "torch"),
        ("kinema_trainer", "kinema_kube"),
        ("kinema_trainer", "kopf"),
        ("kinema_operator", "kinema_server"),
        ("kinema_operator", "kinema_stage"),
        ("kinema_operator", "torch"),
        ("kinema_server", "kinema_cli"),
        ("kinema_cli", "kinema_trainer"),
        ("kinema_trainer.data", "kinema_trainer.stages"),
        ("kinema_trainer.parallel", "kinema_trainer.models"),
        ("kinema_trainer.launch", "kinema_trainer.planning"),
    ],
)
def test_a_forbidden_import_is_found(house: Path, importer: str, imported: str) -> None:
    (house.joinpath(*importer.split(".")) / "wrong.py").write_text(f"import {imported}\n")
    done = linted(house)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout
