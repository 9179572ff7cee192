# SPDX-License-Identifier: Apache-2.0
"""The command: typed exits, a termination message, clear words about a bad config."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.names import Stage
from kinema_stage import artifact, logs, main, signals, termination
from kinema_stage.context import Context
from kinema_stage.workspace import FolderWorkspace

from tests.unit.stage.support import captioned, check_config, prepare_config


class Point:
    """An entry point in memory."""

    def __init__(self, name: str, run: main.Run) -> None:
        self.name = name
        self._run = run

    def load(self) -> main.Run:
        return self._run


def run_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: main.Run) -> tuple[int, Termination]:
    """Run `check` with another implementation, as the command does; the exit code and what was left behind."""
    config = tmp_path / "stage.json"
    config.write_text(check_config(tmp_path).model_dump_json(by_alias=True))
    log = tmp_path / "termination"
    monkeypatch.setenv("KINEMA_TERMINATION_LOG", str(log))
    monkeypatch.setenv("KINEMA_METRICS_PORT", "0")
    monkeypatch.setattr(main, "entry_points", lambda group: [Point("check", run)])
    monkeypatch.setattr(logs, "set_up", lambda stage: None)
    monkeypatch.setattr(signals, "listen", lambda interrupted: None)
    with pytest.raises(SystemExit) as caught:
        main.main(["check", "--config", str(config)])
    assert isinstance(caught.value.code, int)
    return caught.value.code, Termination.model_validate_json(log.read_bytes())


def test_success_leaves_what_the_stage_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(context: Context) -> Termination:
        assert context.folder == "jobs/local/demo-11111111"
        assert context.holder == "11111111-2222/check/0"
        return Termination(code=0, counts={"videos": 2})

    code, left = run_stage(tmp_path, monkeypatch, run)
    assert (code, left.reason, left.counts) == (0, "Succeeded", {"videos": 2})


# Named like torch's.
DistError = type("DistError", (RuntimeError,), {})
DistNetworkError = type("DistNetworkError", (DistError,), {})
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})


@pytest.mark.parametrize(
    ("error", "code", "reason", "message"),
    [
        (StageError(Exit.DATA, "no clips"), Exit.DATA, "Data", "no clips"),
        (ZeroDivisionError("division by zero"), Exit.INTERNAL, "Internal", "ZeroDivisionError: division by zero"),
        (OutOfMemoryError("CUDA out of memory"), Exit.OUT_OF_MEMORY, "OutOfMemory", "CUDA out of memory"),
        (RuntimeError("NPU out of memory. Tried"), Exit.OUT_OF_MEMORY, "OutOfMemory", "NPU out of memory"),
        (DistNetworkError("peer closed"), Exit.COMMUNICATION, "Communication", "peer closed"),
        (OSError(errno.ENOSPC, "No space left on device"), Exit.STORAGE, "Storage", "No space left on device; free"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, "Interrupted", "KeyboardInterrupt"),
        (PermissionError(errno.EACCES, "Permission denied", "/elsewhere"), Exit.INTERNAL, "Internal", "/elsewhere"),
    ],
)
def test_failure_is_typed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: Exit,
    reason: str,
    message: str,
) -> None:
    def run(context: Context) -> Termination:
        raise error

    exit_code, left = run_stage(tmp_path, monkeypatch, run)
    assert (exit_code, left.code, left.reason) == (code, code, reason)
    assert message in left.message
    assert ("Traceback" in capsys.readouterr().err) is not isinstance(error, StageError)


def test_denied_inside_the_workspace_is_the_storages_fault(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "artifacts"))
    wrapped = RuntimeError("checkpoint failed")
    wrapped.__cause__ = denied
    assert termination.failure(wrapped, workspace=tmp_path).code == Exit.STORAGE
    assert termination.failure(denied, workspace=tmp_path / "other").code == Exit.INTERNAL


def test_a_long_message_fits_the_termination_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(context: Context) -> Termination:
        raise StageError(Exit.DATA, "ä" * 9000)

    _, left = run_stage(tmp_path, monkeypatch, run)
    assert (tmp_path / "termination").stat().st_size <= 4096
    assert left.message.endswith("...")


def test_without_a_termination_log_nothing_is_written(tmp_path: Path) -> None:
    termination.write(Termination(code=0), environment={"KINEMA_TERMINATION_LOG": str(tmp_path / "no" / "folder")})
    assert list(tmp_path.iterdir()) == []


def test_an_image_without_the_stage_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "entry_points", lambda group: [Point("check", lambda _: Termination(code=0))])
    with pytest.raises(StageError, match="cannot run stage train \\(it has: check\\)") as caught:
        main.implementation(Stage.TRAIN)
    assert caught.value.code is Exit.USER


def config_fault(path: Path, data: Any, stage: Stage = Stage.CHECK) -> str:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(StageError) as caught:
        main.read_config(stage, path)
    assert caught.value.code is Exit.USER
    return caught.value.message


def test_a_bad_config_is_told_field_by_field(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    good = check_config(tmp_path).wire()
    assert "Invalid JSON" in config_fault(path, "{")
    frames = {**good, "prepare": {"video": {"frames": "many"}}, "extra": 1}
    text = config_fault(path, frames)
    assert "check.prepare.video.frames: Input should be a valid integer" in text
    assert "extra" not in text, "it may be of a newer operator"
    assert "is for stage check, not train" in config_fault(path, good, Stage.TRAIN)
    assert "No such file" in _missing(tmp_path / "gone.json")


def _missing(path: Path) -> str:
    with pytest.raises(StageError) as caught:
        main.read_config(Stage.CHECK, path)
    return caught.value.message


def test_a_published_artifact_ends_a_shared_stage_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare_config(check_config(tmp_path), "abc")
    path = tmp_path / "stage.json"
    path.write_text(config.model_dump_json(by_alias=True))
    workspace = FolderWorkspace(config.workspace.uri)
    manifest = artifact.Manifest(stage=Stage.PREPARE, key="abc", job="ns/first", counts={"clips": 4})
    artifact.publish(workspace, "artifacts/prepare/abc", manifest)

    def forbidden(stage: Stage) -> main.Run:
        raise AssertionError("the implementation is not even loaded")

    monkeypatch.setattr(main, "implementation", forbidden)
    end = main.execute(stage=Stage.PREPARE, config=path, interrupted=threading.Event())
    assert (end.code, end.reason, end.counts) == (0, "ArtifactExists", {"clips": 4})
    assert end.artifact == workspace.uri("artifacts/prepare/abc")


def command(*arguments: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "kinema_stage.main", *arguments]
    return subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_the_command_as_a_container_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioned(tmp_path / "data" / "one.mp4")
    path, log = tmp_path / "stage.json", tmp_path / "termination"
    path.write_text(check_config(tmp_path).model_dump_json(by_alias=True))
    monkeypatch.setenv("KINEMA_TERMINATION_LOG", str(log))
    monkeypatch.setenv("KINEMA_METRICS_PORT", "0")
    environment = dict(os.environ)
    with command("check", "--config", str(path), environment=environment) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    left = Termination.model_validate_json(log.read_bytes())
    assert left.counts == {"videos": 1, "usable": 1}
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["stage"] for line in lines} == {"check"}
    assert lines[-1]["reason"] == "Succeeded"
    with command("bake", environment=environment) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == Exit.USER
    assert "invalid choice: 'bake'" in err


_WAIT = """
import sys, threading
from kinema_stage import signals
interrupted = threading.Event()
signals.listen(interrupted)
print("ready", flush=True)
sys.exit(75 if interrupted.wait(30) else 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _WAIT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(30) == 75
