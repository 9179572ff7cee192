# SPDX-License-Identifier: Apache-2.0
"""Mutation testing counts what it must, and fails when tests see too little."""

from __future__ import annotations

import tomllib
from pathlib import Path

import mutation
import pytest

pytestmark = pytest.mark.unit

SEEN, UNSEEN, UNTESTED, ENDLESS, REFUSED = 1, 0, 33, -24, 37


def counted(monkeypatch: pytest.MonkeyPatch, *codes: int | None) -> bool:
    monkeypatch.setattr(mutation, "verdicts", lambda _: {f"change {n}": code for n, code in enumerate(codes)})
    monkeypatch.setattr(mutation, "show", lambda name: f"diff of {name}")
    return mutation.report(["kinema_operator.walk"])


def test_nine_of_ten_are_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert counted(monkeypatch, *[SEEN] * 8, ENDLESS, UNSEEN, *[REFUSED] * 5)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "diff of change 9"
    assert said[-2:] == [
        "mutation: 5 more changes never got to a test: mypy refuses them",
        "mutation: 9 of 10 changes seen, 90.0 %; wanted 90 %",
    ]


@pytest.mark.parametrize("code", [UNSEEN, UNTESTED, None])
def test_fewer_are_not(code: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not counted(monkeypatch, *[SEEN] * 8, code, code)
    assert not counted(monkeypatch, *[REFUSED] * 5), "nothing was tested"


def test_every_module_is_there_and_laid_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mutation, "WORK", tmp_path)
    mutation.lay_out(mutation.modules()[:2])
    assert all((tmp_path / mutation.path_of(module)).is_file() for module in mutation.modules())
    settings = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["mutmut"]
    assert settings["only_mutate"] == ["src/kinema_api/configs.py", "src/kinema_api/mounts.py"]
    assert all((tmp_path / name).exists() for name in settings["pytest_add_cli_args_test_selection"][:-1])


def test_an_unknown_module_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["mutation.py", "stroll"])
    assert mutation.main() == 2
    assert "no such module among stroll; there are configs, mounts, pipeline" in capsys.readouterr().err
