# SPDX-License-Identifier: Apache-2.0
"""Commands within sentences are such that `kinema` takes them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from kinema_cli.__main__ import app

REPOSITORY = Path(__file__).resolve().parents[3]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
GROUP: Any = typer.main.get_command(app)
COMMAND = re.compile(r"`kinema( [a-z][^`\s]*(?: [^`\s]+)*)`")


def commands() -> list[Any]:
    """Every command that stands within a sentence."""
    found = [
        pytest.param(match[1].split()[0], match[1], id=f"{page.relative_to(REPOSITORY).as_posix()}: kinema{match[1]}")
        for page in PAGES
        for match in COMMAND.finditer(page.read_text(encoding="utf-8"))
    ]
    return list({param.id: param for param in found}.values())


def test_commands_are_found() -> None:
    assert {param.values[0] for param in commands()} >= {"doctor", "plan", "samples", "why"}


@pytest.mark.parametrize(("name", "line"), commands())
def test_the_command_line_takes_it(name: str, line: str) -> None:
    command = GROUP.commands[name]
    words = shlex.split(line)[1:]
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    given = [word.partition("=")[0] for word in words if word.startswith("-") and word != "-"]
    assert [word for word in given if word not in known] == []
