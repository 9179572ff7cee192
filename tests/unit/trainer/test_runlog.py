# SPDX-License-Identifier: Apache-2.0
"""The run's log in a store where no file can be appended to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kinema_trainer.numbers.runlog import EVENTS, METRICS, TENSORBOARD, RunLog

from tests.unit.trainer.memory import MemoryWorkspace

RUN = "jobs/local/run"


@pytest.fixture(autouse=True)
def local_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KINEMA_SCRATCH_DIR", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def steps(workspace: MemoryWorkspace) -> list[int]:
    return [json.loads(line)["step"] for line in workspace.files.get(f"{RUN}/{METRICS}", b"").splitlines()]


def start(workspace: MemoryWorkspace, *, step: int = 0, attempt: int = 1) -> RunLog:
    return RunLog(workspace, RUN, step=step, attempt=attempt)


def test_all_is_there_once_it_is_asked_for_and_once_it_is_closed(local_scratch: Path) -> None:
    workspace = MemoryWorkspace()
    log = start(workspace)
    log.step(1, {"loss": 2.0})
    log.upload()
    assert steps(workspace) == [1]
    log.step(2, {"loss": 1.0})
    assert steps(workspace) == [1]
    log.event("ended", step=2)
    log.close()
    assert steps(workspace) == [1, 2]
    events = [json.loads(line)["event"] for line in workspace.files[f"{RUN}/{EVENTS}"].splitlines()]
    assert events == ["started", "ended"]
    assert [path for path in workspace.files if path.startswith(f"{RUN}/{TENSORBOARD}/")]
    assert list(local_scratch.iterdir()) == []


def test_a_killed_run_goes_on_where_its_checkpoint_was_and_logs_each_step_once() -> None:
    workspace = MemoryWorkspace()
    killed = start(workspace)
    for step in (1, 2, 3):
        killed.step(step, {"loss": 1.0 / step})
    killed.upload()
    killed.step(4, {"loss": 0.1})
    workspace.files[f"{RUN}/{METRICS}"] += b'{"step": 4, "lo'
    log = start(workspace, step=2, attempt=2)
    log.step(3, {"loss": 0.3})
    log.close()
    assert steps(workspace) == [1, 2, 3]
    last = json.loads(workspace.files[f"{RUN}/{EVENTS}"].splitlines()[-1])
    assert (last["event"], last["step"], last["repeats"]) == ("resumed", 2, 1)


def test_only_what_changed_is_uploaded() -> None:
    workspace = MemoryWorkspace()
    log = start(workspace)
    log.step(1, {"loss": 1.0})
    log.upload()
    before = len(workspace.uploads)
    log.event("noticed")
    log.upload()
    assert workspace.uploads[before:] == [f"{RUN}/{EVENTS}"]
    log.close()


def test_a_store_that_is_away_fails_the_checkpoint_but_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    workspace = MemoryWorkspace()
    log = start(workspace)
    log.step(1, {"loss": 1.0})
    workspace.broken = OSError("the bucket is gone")
    with pytest.raises(OSError, match="the bucket is gone"):
        log.upload()
    log.close()
    assert "the last lines of memory://jobs/local/run are lost: the bucket is gone" in caplog.text
