# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md shows what the command prints: `UPDATE_DOCS=1` writes it anew."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer.main

from kinema_cli.__main__ import app
from kinema_cli.ends import ENDS

from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi
from tests.unit.cli.scenes import NOW, ROOT, SCENES

pytestmark = pytest.mark.unit

PAGE = ROOT / "docs" / "cli.md"
SHOWN = re.compile(r"<!-- (?P<scene>\w+) \$ (?P<command>kinema .+?) -->\n```\n(?P<output>.*?)```\n", re.DOTALL)
REFERENCE = re.compile(r"(?<=<!-- reference -->\n).*?(?=<!-- end of the reference -->)", re.DOTALL)
_KINDS: dict[Any, str] = {int: "NUMBER", float: "NUMBER", Path: "PATH"}
SERVER = "https://kubernetes.example.com:6443"


def shown() -> list[Any]:
    """Every output on the page."""
    return [pytest.param(found["scene"], found["command"], id=found["command"]) for found in SHOWN.finditer(_page())]


def _page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("scene", "command"), shown())
def test_the_page_shows_what_is_printed(
    api: FakeApi, kinema: Kinema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: str, command: str
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    SCENES[scene](api, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("kinema_cli.clock.now", lambda: NOW)
    monkeypatch.setenv("COLUMNS", "80")
    done = kinema(*command.split()[1:])
    printed = (done.out + done.err).replace(api.url, SERVER)
    told = printed + (f"# exit code {done.code}\n" if done.code else "")
    if os.environ.get("UPDATE_DOCS"):
        _write(scene, command, told)
    page = {(found["scene"], found["command"]): found["output"] for found in SHOWN.finditer(_page())}
    assert page[scene, command] == told, "the page is old: UPDATE_DOCS=1 pytest tests/unit/cli/test_cli_docs.py"


def _write(scene: str, command: str, told: str) -> None:
    def renewed(found: re.Match[str]) -> str:
        if (found["scene"], found["command"]) != (scene, command):
            return found[0]
        return f"<!-- {scene} $ {command} -->\n```\n{told}```\n"

    PAGE.write_text(SHOWN.sub(renewed, _page()), encoding="utf-8")


def test_each_of_the_four_is_shown_on_a_good_and_on_a_broken_case() -> None:
    found: dict[str, set[str]] = {}
    for shown_ in SHOWN.finditer(_page()):
        if "submit" in shown_["command"] and "--follow" not in shown_["command"]:
            continue
        code = "bad" if shown_["output"].splitlines()[-1].startswith("# exit code") else "good"
        verdict = "bad" if "\ncause " in shown_["output"] else code
        found.setdefault(shown_["command"].split()[1], set()).add(verdict)
    for command in ("plan", "submit", "why", "doctor"):
        assert found[command] == {"good", "bad"}, command


def test_the_reference_has_every_command_and_option() -> None:
    wanted = reference()
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(REFERENCE.sub(lambda _: wanted, _page()), encoding="utf-8")
    found = REFERENCE.search(_page())
    assert found is not None
    assert found[0] == wanted, "the page is old: UPDATE_DOCS=1 pytest tests/unit/cli/test_cli_docs.py"


def test_the_page_has_every_exit_code_of_a_job() -> None:
    page = _page()
    assert [code for code, meaning in ENDS.items() if f"| {code} | {meaning} |" not in page] == []


def reference() -> str:
    """Every command with its arguments and options, as the command itself knows them."""
    group: Any = typer.main.get_command(app)
    return "\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    usage = " ".join(["kinema", name, "[OPTIONS]", *(_metavar(argument) for argument in arguments)])
    lines = [f"### kinema {name}", "", " ".join(command.help.split()), "", f"    {usage}", ""]
    if arguments or options:
        lines += ["| | |", "|---|---|"]
        lines += [
            f"| `{argument.metavar or argument.name.upper()}` | {_cell(argument.help)} |" for argument in arguments
        ]
        lines += [f"| {_names(option)} | {_cell(option.help)}{_more(option)} |" for option in options]
        lines.append("")
    return "\n".join(lines)


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    words = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return words if option.is_flag else f"{words} {_kind(option)}"


def _kind(option: Any) -> str:
    annotation = option.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "\\|".join(str(choice.value) for choice in annotation)
    return str(option.metavar or _KINDS.get(annotation, "TEXT"))


def _more(option: Any) -> str:
    parts = [f"${option.envvar}"] if option.envvar else []
    default = getattr(option.default, "value", option.default)
    if option.show_default and not option.is_flag and default not in (None, "", (), []) and not callable(default):
        parts.append(f"default {default}")
    return f" ({'; '.join(parts)})" if parts else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())
