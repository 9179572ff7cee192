# SPDX-License-Identifier: Apache-2.0
"""What a Prometheus answers is drawn, each number in its unit, and an empty answer is said to be one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from kinema_dashboards import __main__ as command
from kinema_dashboards import live, sheet
from kinema_dashboards.boards import Query, Shape
from kinema_dashboards.build import BOARDS
from kinema_dashboards.live import Prometheus, Series, Silent
from PIL import Image

pytestmark = pytest.mark.unit

VALUES = {"namespace": "team", "vtj": "wan", "job": ".+", "instance": ".+", "__rate_interval": "1m", "__range": "10m"}
SPAN = sheet.Span(1_000_000.0, 1_000_600.0)


class Answers(Prometheus):
    """Says the same to every query."""

    def __init__(self, *values: float) -> None:
        super().__init__("http://nowhere")
        self.values = values
        self.asked: list[str] = []

    def _series(self, expr: str) -> list[Series]:
        self.asked.append(expr)
        labels = {"namespace": "team", "vtj": "wan", "stage": "train", "phase": "Running", "model": "m", "job": "j"}
        points = tuple((SPAN.start + 60 * number, value) for number, value in enumerate(self.values))
        return [Series(labels, points)] if points else []

    def now(self, expr: str) -> list[Series]:
        return self._series(expr)

    def over(self, expr: str, *, start: float, end: float, step: float) -> list[Series]:
        assert (start, end, step) == (SPAN.start, SPAN.end, 2.0)
        return self._series(expr)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_sheet_asks_every_query_and_shows_the_answers(board: Any) -> None:
    full, empty = Answers(0.0, 1.0, 0.5), Answers()
    pictures = [sheet.draw(board, answers, SPAN, VALUES, caption="c") for answers in (full, empty)]
    assert len(full.asked) == len(empty.asked) == sum(len(panel.queries) for panel in board.panels)
    assert not [expr for expr in full.asked if "$" in expr]
    first, second = (Image.open(io.BytesIO(picture)) for picture in pictures)
    assert first.size == second.size and first.size[0] == sheet.WIDTH * sheet.DPI
    assert pictures[0] != pictures[1]
    assert len(pictures[0]) < 200_000


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_do_not_lie_on_each_other(board: Any) -> None:
    taken: set[tuple[int, float]] = set()
    for _, _, panels in sheet.rows(board):
        for panel, column, line in panels:
            cells = {(column + x, line + y) for x in range(panel.width) for y in range(panel.height)}
            assert column + panel.width <= sheet.COLUMNS and not cells & taken
            taken |= cells


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.4321, "percentunit", "43.2 %"),
        (5400, "s", "1.5 h"),
        (0.0123, "s", "12.3 ms"),
        (3 * 2**30, "bytes", "3 GiB"),
        (4.1e14, "flops", "410 TFLOP/s"),
        (524_160, "short", "524 K"),
        (1e-4, "sci", "1.00e-04"),
        (1.5, "reqps", "1.5/s"),
        (float("nan"), "none", "nan"),
    ],
)
def test_numbers_are_written_in_their_unit(value: float, unit: str, text: str) -> None:
    assert sheet.human(value, unit) == text


def test_series_are_named_as_the_query_says() -> None:
    labels = {"__name__": "x", "pod": "a", "device": "3"}
    assert sheet.legend(Query("x", "{{pod}} no. {{device}}"), labels) == "a no. 3"
    assert sheet.legend(Query("x"), labels) == "a, 3"


def test_every_shape_can_be_drawn() -> None:
    assert set(sheet._DRAWN) == set(Shape)


def test_sheets_of_a_prometheus_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "Prometheus", lambda address: Answers(1.0))
    monkeypatch.setattr(sheet, "draw", lambda *_, **__: b"png")
    assert command.main(["sheets", "--prometheus", "http://p", "--out", str(tmp_path / "new")]) == 0
    assert {path.stem for path in (tmp_path / "new").iterdir()} == {board.uid for board in BOARDS}


def test_what_has_no_data_is_listed_and_what_needs_accelerators_is_excused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    excused = Silent("Job: Memory", "vtj:accelerator_memory_used:bytes", excused=True)
    found = [excused]
    monkeypatch.setattr(live, "silent", lambda *_: found)
    assert command.main(["silent", "--prometheus", "http://p"]) == 0
    found.append(Silent("Job: Loss", "kinema_train_loss", excused=False))
    assert command.main(["silent", "--prometheus", "http://p"]) == 1
    said = capsys.readouterr().out
    assert "silent   Job: Loss: kinema_train_loss" in said
    assert "1 queries without data, and 1 that only accelerators answer" in said


def test_a_prometheus_that_is_not_there_is_told() -> None:
    with pytest.raises(live.LiveError, match="does not answer"):
        Prometheus(f"http://127.0.0.1:{live.free_port()}").now("up")
