# SPDX-License-Identifier: Apache-2.0
"""How a benchmark reports."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from bench.common import Goal, Side, report


def side(value: float) -> Side:
    return Side(what="something", value=value, unit="s", raw=[value])


@pytest.mark.parametrize(
    ("goal", "ours", "holds"),
    [
        (Goal(at_most=1.05), 1.05, True),
        (Goal(at_most=1.05), 1.06, False),
        (Goal(at_least=0.9), 0.9, True),
        (Goal(at_least=0.9), 0.89, False),
    ],
)
def test_line_and_file_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], goal: Goal, ours: float, holds: bool
) -> None:
    assert report("x", ours=side(ours), reference=side(1.0), goal=goal, results=tmp_path) is holds
    line = json.loads(capsys.readouterr().out)
    whole = json.loads((tmp_path / "x.json").read_text())
    assert line["holds"] is holds
    assert {name: line[name] for name in ("name", "ratio", "goal", "holds")}.items() <= whole.items()
    assert whole["ratio"] == pytest.approx(ours)
    assert whole["ours"]["raw"] == [ours]
    assert whole["commit"]
    assert whole["machine"]["cores"] >= 1


def test_nothing_names_the_machine(tmp_path: Path) -> None:
    report("x", ours=side(1), reference=side(1), goal=Goal(at_most=1), results=tmp_path)
    text = (tmp_path / "x.json").read_text()
    assert str(tmp_path) not in text
    assert socket.gethostname() not in text


def test_a_ratio_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ratio"):
        report("x", ours=side(1), reference=side(0), goal=Goal(at_most=1), results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_goal_is_one_bound() -> None:
    with pytest.raises(ValueError, match="either"):
        Goal(at_most=1, at_least=1)
