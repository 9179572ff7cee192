# SPDX-License-Identifier: Apache-2.0
"""What a reader shows of a run, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema_api.inputs import Storage
from kinema_api.reading import ReaderConfig
from kinema_stage.history import Steps, chosen
from kinema_stage.reader import Reader, make_server, part_of, serve
from kinema_stage.workspace import FolderWorkspace

pytestmark = pytest.mark.unit

RUN = "jobs/team/wan-12345678"
TOKEN = "right"
VIDEO = bytes(range(256)) * 10


def config(folder: Path, **more: Any) -> ReaderConfig:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    return ReaderConfig(workspace=Storage(uri=f"file://{folder}"), run=RUN, token_digest=digest, port=0, **more)


def write_steps(folder: Path, steps: range, *, loss: float = 1.0) -> None:
    path = folder / RUN / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "time": 1.0, "loss": loss / step, "mfu": 0.4}) + "\n")


def write_samples(folder: Path, place: str, *files: str) -> None:
    path = folder / RUN / place
    path.mkdir(parents=True)
    for number, name in enumerate(files):
        (path / name).write_bytes(VIDEO)
        with (path / "samples.jsonl").open("a") as listing:
            listing.write(json.dumps({"prompt": f"prompt {number}", "seed": number, "file": name}) + "\n")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = make_server(Reader(config(tmp_path), FolderWorkspace(f"file://{tmp_path}")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(url: str, *, token: str = TOKEN, part: str = "") -> tuple[int, bytes, dict[str, str]]:
    headers = {"Authorization": f"Bearer {token}", **({"Range": part} if part else {})}
    try:
        with urlopen(Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_history_grows_with_the_file(address: str, tmp_path: Path) -> None:
    assert json.loads(fetch(f"{address}/history")[1]) == {"step": None, "series": []}
    write_steps(tmp_path, range(1, 101))
    found = json.loads(fetch(f"{address}/history?points=10&series=loss&series=mfu&series=nothing")[1])
    assert found["step"] == 100
    assert [(series["name"], len(series["steps"])) for series in found["series"]] == [("loss", 10), ("mfu", 10)]
    write_steps(tmp_path, range(101, 103))
    loss = json.loads(fetch(f"{address}/history?points=3&series=loss")[1])["series"][0]
    assert (loss["steps"][0], loss["steps"][-1]) == (1, 102)
    assert loss["values"][0] == 1.0


def test_samples_are_listed_and_sent_in_parts(address: str, tmp_path: Path) -> None:
    write_samples(tmp_path, "samples", "00-seed1.mp4")
    write_samples(tmp_path, "training-samples/step-00000010", "00-seed1.mp4", "01-seed1.mp4")
    write_samples(tmp_path, "training-samples/step-00000200", "00-seed1.mp4")
    found = json.loads(fetch(f"{address}/samples")[1])["items"]
    assert [(item["round"], item["file"]) for item in found] == [
        ("final", "00-seed1.mp4"),
        ("200", "00-seed1.mp4"),
        ("10", "00-seed1.mp4"),
        ("10", "01-seed1.mp4"),
    ]
    assert (found[3]["prompt"], found[3]["seed"], found[3]["size"]) == ("prompt 1", 1, len(VIDEO))
    code, body, headers = fetch(f"{address}/samples/10/01-seed1.mp4")
    assert (code, body, headers["Content-Type"]) == (200, VIDEO, "video/mp4")
    code, body, headers = fetch(f"{address}/samples/final/00-seed1.mp4", part="bytes=5-9")
    assert (code, body, headers["Content-Range"]) == (206, VIDEO[5:10], f"bytes 5-9/{len(VIDEO)}")
    assert fetch(f"{address}/samples/final/00-seed1.mp4", part="bytes=99999-")[0] == 416


@pytest.mark.parametrize("path", ["/", "/samples/final/absent.mp4", "/samples/final/..%2Fmetrics.jsonl", "/etc/passwd"])
def test_nothing_else_is_shown(address: str, tmp_path: Path, path: str) -> None:
    write_samples(tmp_path, "samples", "00-seed1.mp4")
    write_steps(tmp_path, range(1, 3))
    assert fetch(f"{address}{path}")[0] == 404


@pytest.mark.parametrize("path", ["/history", "/samples"])
def test_nothing_is_shown_to_others(address: str, path: str) -> None:
    assert fetch(f"{address}{path}", token="wrong")[0] == 401
    assert fetch(f"{address}/healthz", token="wrong")[:2] == (200, b"ok")


def test_a_file_that_was_cut_is_read_anew(tmp_path: Path) -> None:
    steps = Steps(FolderWorkspace(f"file://{tmp_path}"), f"{RUN}/metrics.jsonl")
    write_steps(tmp_path, range(1, 51))
    steps.refresh()
    (tmp_path / RUN / "metrics.jsonl").unlink()
    write_steps(tmp_path, range(1, 71), loss=2.0)
    steps.refresh()
    (loss,) = steps.history(["loss"], points=100).series
    assert (loss.steps, loss.values[0]) == ([*range(1, 71)], 2.0)


def test_a_last_line_that_is_still_written_waits(tmp_path: Path) -> None:
    steps = Steps(FolderWorkspace(f"file://{tmp_path}"), f"{RUN}/metrics.jsonl")
    write_steps(tmp_path, range(1, 3))
    path = tmp_path / RUN / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "loss": NaN')
    steps.refresh()
    assert steps.history(["loss"], points=10).step == 2
    with path.open("a") as file:
        file.write("}\n")
    steps.refresh()
    (loss,) = steps.history(["loss"], points=10).series
    assert (loss.steps, loss.values) == ([1, 2, 3], [1.0, 0.5, None])


def test_a_reader_that_nobody_asks_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(Reader(config(tmp_path, idle_seconds=1), FolderWorkspace(f"file://{tmp_path}")))
    assert "listening" in capsys.readouterr().out


@given(st.lists(st.floats(allow_infinity=True, allow_nan=True), max_size=200), st.integers(3, 50))
def test_chosen_points_are_few_and_rise(values: list[float], points: int) -> None:
    kept = chosen(values, points=points)
    assert len(kept) == min(points, len(values))
    assert kept == sorted(set(kept))
    assert not values or (kept[0], kept[-1]) == (0, len(values) - 1)


def test_a_peak_is_kept() -> None:
    values = [1.0] * 10_000
    values[7_777] = 50.0
    values[3_333] = float("nan")
    assert {7_777, 3_333} <= set(chosen(values, points=50))


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("", (0, 100)),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-200", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=100-", None),
        ("bytes=20-10", None),
        ("bytes=-0", None),
        ("lines=1-2", (0, 100)),
        ("bytes=-", (0, 100)),
    ],
)
def test_ranges(header: str, part: tuple[int, int] | None) -> None:
    assert part_of(header, size=100) == part
