# SPDX-License-Identifier: Apache-2.0
"""What the demo shows of a job."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kinema_demo.follow import Follower, Gone, News, Step, read_step
from kinema_demo.job import JobView, read
from kinema_demo.kubectl import Kubectl
from kinema_demo.steps import duration
from kinema_demo.view import Plain, Screen, show, sparkline
from rich.console import Console

NOW = datetime(2026, 11, 21, 10, 1, 0, tzinfo=UTC)


def stage(name: str, state: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": state, **more}


def attempt(number: int, *, child: str, finished: str | None = None) -> dict[str, Any]:
    ended = {"finishedAt": finished} if finished else {}
    return {"number": number, "child": child, "state": "Running", "startedAt": "2026-11-21T10:00:00Z", **ended}


def job(phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "wan", "uid": "0123456789"}, "status": {"phase": phase, **status}}


CHECKED = attempt(1, child="wan-check-1", finished="2026-11-21T10:00:07Z")
KILLED = {**attempt(1, child="wan-train-1"), "state": "Failed", "message": "it was killed"}
RUNNING = job(
    restarts=1,
    stages=[
        stage("check", "Succeeded", message="4 of 4 videos", attempts=[CHECKED]),
        stage("prepare", "Skipped", message="exists already"),
        stage("train", "Running", attempts=[KILLED, attempt(2, child="wan-train-2")]),
        stage("sample", "Pending"),
    ],
    progress={"stage": "train", "percentage": 40, "eta": "1m", "step": 40, "totalSteps": 100, "loss": "0.5"},
)  # fmt: skip


def rendered(screen: Screen) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(screen)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_job_without_a_status_is_pending_with_every_stage() -> None:
    view = read({"metadata": {"name": "wan", "uid": "1"}})
    assert view.phase == "Pending"
    assert [stage.name for stage in view.stages][:2] == ["check", "prepare"]
    assert not view.ended


def test_a_job_is_read() -> None:
    view = read(RUNNING)
    train = view.stage("train")
    assert train is not None
    assert (train.child, train.attempts, train.seconds) == ("wan-train-2", 2, None)
    assert (view.current, view.percentage, view.eta) == ("train", 40, "1m")
    check = view.stage("check")
    assert check is not None
    assert check.seconds == 7


def test_progress_of_a_stage_that_is_over_is_not_shown() -> None:
    stale = job(stages=[stage("train", "Running")], progress={"stage": "convert", "percentage": 99, "eta": "1s"})
    assert (read(stale).percentage, read(stale).eta) == (0, "")


def test_the_screen_tells_stages_progress_and_loss() -> None:
    screen = Screen(now=NOW)
    told: list[News] = [read(RUNNING), *(Step(step=n, total=100, loss=2.0 - n / 100) for n in range(1, 51))]
    for news in told:
        screen.take(news)
    shown = rendered(screen)
    assert "vtj/wan Running, 1 restarts" in shown
    assert "exists already" in shown
    assert "50 %" in shown, "the log knows more than the status, which is written every 15 s"
    assert "1m left" in shown
    assert "1.9900 at the first step, 1.5000 at step 50/100" in shown
    assert "0:07" in shown and "1:00" in shown


def test_a_step_that_was_done_again_counts_once() -> None:
    screen = Screen()
    for step, loss in ((1, 3.0), (2, 2.0), (1, 4.0)):
        screen.take(Step(step=step, total=2, loss=loss))
    assert screen.losses == {1: 4.0, 2: 2.0}


def test_plain_lines_tell_each_change_once() -> None:
    console = Console(file=io.StringIO(), width=200)
    plain = Plain(console)
    told: list[News] = [read(RUNNING), read(RUNNING), *(Step(step=n, total=100, loss=1.0) for n in range(1, 101))]
    for news in told:
        plain.take(news)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines[:4]] == [
        "check: succeeded: 4 of 4 videos",
        "prepare: skipped: exists already",
        "train: failed, attempt 1: it was killed",
        "train: running (attempt 2)",
    ]
    assert len(lines) <= 4 + 21
    assert lines[-1].endswith("train: step 100/100, loss 1.0000")


class Told:
    """Stands for a follower."""

    def __init__(self, *news: News) -> None:
        self._news = news

    def news(self, *, patience: float) -> Iterator[News | None]:
        yield from self._news


@pytest.mark.parametrize("terminal", [True, False])
def test_show_returns_the_last_state_and_none_for_a_deleted_job(terminal: bool) -> None:
    def ended(*news: News) -> JobView | None:
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        return show(Told(*news), console)  # type: ignore[arg-type]

    last = ended(read(RUNNING), read(job("Succeeded")))
    assert last is not None and last.succeeded
    assert ended(read(RUNNING), Gone()) is None


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ('{"step": 3, "total_steps": 10, "loss": 0.5}', Step(step=3, total=10, loss=0.5)),
        ('{"step": 3, "loss": "0.5"}', Step(step=3, total=None, loss=0.5)),
        ('{"message": "loading"}', None),
        ("NCCL INFO something", None),
        ("7", None),
        ('{"step": null, "loss": 1}', None),
    ],
)
def test_training_steps_are_found_in_a_log(line: str, step: Step | None) -> None:
    assert read_step(line) == step


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0]) == "▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(1000))) == 60


KUBECTL = """\
#!/bin/sh
case "$*" in
  *--output-watch-events*) cat "$0.events"; exec tail -f /dev/null ;;
  *logs*wan-train-2-master-0*) printf '{"step": 1, "total_steps": 2, "loss": 0.5}\\nnoise\\n' ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    """A follower of a kubectl that tells what stands in the file kubectl.events."""
    binary = tmp_path / "kubectl"
    binary.write_text(KUBECTL)
    binary.chmod(0o755)
    return Follower(Kubectl(binary=str(binary), kubeconfig=tmp_path / "config"), "wan")


def test_a_follower_sees_the_watch_and_the_log_of_training(follower: Follower, tmp_path: Path) -> None:
    events = [{"type": kind, "object": {"kind": "VideoTrainingJob", **RUNNING}} for kind in ("ADDED", "MODIFIED")]
    (tmp_path / "kubectl.events").write_text("".join(json.dumps(event) + "\n" for event in events))
    seen: list[News] = []
    with follower:
        for news in follower.news(patience=20):
            assert news is not None, "silence"
            seen.append(news)
            if len(seen) == 3:
                break
    assert sorted(type(news).__name__ for news in seen) == ["JobView", "JobView", "Step"]
    assert Step(step=1, total=2, loss=0.5) in seen


def test_a_follower_ends_with_its_job(follower: Follower, tmp_path: Path) -> None:
    (tmp_path / "kubectl.events").write_text(json.dumps({"type": "DELETED", "object": {}}) + "\n")
    with follower:
        assert list(follower.news(patience=20)) == [Gone()]


def test_a_follower_hides_no_error(follower: Follower, tmp_path: Path) -> None:
    (tmp_path / "kubectl.events").write_text("this is no JSON\n")
    with follower, pytest.raises(ValueError, match="Expecting value"):
        list(follower.news(patience=20))


@pytest.mark.parametrize(("seconds", "text"), [(7.9, "0:07"), (750, "12:30"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
