# SPDX-License-Identifier: Apache-2.0
"""What a Prometheus answers is drawn, each number in its unit, and an empty answer is said to be one."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kinema_dashboards import __main__ as command
from kinema_dashboards import live, sheet
from kinema_dashboards.boards import Board, Query, Row, Shape
from kinema_dashboards.build import BOARDS
from kinema_dashboards.live import Prometheus, Series, Silent, Span
from PIL import Image

pytestmark = pytest.mark.unit

VALUES = {"namespace": "team", "vtj": "wan", "job": ".+", "instance": ".+", "__rate_interval": "1m", "__range": "10m"}
SPAN = Span(1_000_000.0, 1_000_600.0)


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

    def now(self, expr: str, *, at: float | None = None) -> list[Series]:
        assert at in (None, SPAN.end)
        return self._series(expr)

    def over(self, expr: str, span: Span, *, points: int = live.POINTS) -> list[Series]:
        assert span == SPAN and span.step(points) == 2.0
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
    excused = Silent("Job: Memory", "vtj:accelerator_memory_used:bytes", excused="no accelerator")
    found = [excused]
    monkeypatch.setattr(live, "silent", lambda *_, span: found if span.end - span.start == 600 else [])
    assert command.main(["silent", "--prometheus", "http://p"]) == 0
    found.append(Silent("Job: Loss", "kinema_train_loss"))
    assert command.main(["silent", "--prometheus", "http://p"]) == 1
    said = capsys.readouterr().out
    assert "silent   Job: Loss: kinema_train_loss" in said
    assert "1 queries without data, and 1 that need not have any" in said


def test_a_prometheus_that_is_not_there_is_told() -> None:
    with pytest.raises(live.LiveError, match="does not answer"):
        Prometheus(f"http://127.0.0.1:{live.free_port()}").now("up")


class Numbers(Prometheus):
    """Two series of a number: one that ended, and one that goes on."""

    def over(self, expr: str, span: Span, *, points: int = live.POINTS) -> list[Series]:
        return [
            Series({"stage": "prepare"}, ((span.start, 0.2), (span.start + 60, 1.0))),
            Series({"stage": "train"}, ((span.start + 60, 0.1), (span.end, 0.4))),
        ]


def test_a_number_is_the_last_one_and_what_goes_on_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.text", lambda self, x, y, text, **_: written.append(text))
    panel = next(panel for panel in BOARDS[1].panels if panel.title == "Progress")
    board = Board(uid="x", title="x", text="x", variables=(), rows=(Row("x", (panel,)),))
    sheet.draw(board, Numbers("http://nowhere"), SPAN, VALUES, caption="c")
    assert written == ["40 %", "train", "100 %", "prepare"]


TERMINATED = """
import contextlib, sys, time
from kinema_dashboards import __main__ as command, live, programs, scene

@contextlib.contextmanager
def running(*_):
    try:
        print("runs", flush=True)
        yield None
    finally:
        print("ended", flush=True)

@contextlib.contextmanager
def served():
    class Moving:
        def tick(self):
            pass
    yield Moving(), []

programs.ensure, live.running, scene.served = lambda: None, running, served
command.main(["sheets"])
"""


def test_sigterm_ends_the_prometheus_of_a_rehearsal() -> None:
    with subprocess.Popen([sys.executable, "-c", TERMINATED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.terminate()
        assert process.stdout.read() == "ended\n"
    assert process.returncode == 128 + signal.SIGTERM
