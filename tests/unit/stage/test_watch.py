# SPDX-License-Identifier: Apache-2.0
"""A stage that works in its own process and hangs ends itself, and says so."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kinema_api.exits import Exit, Termination
from kinema_api.names import Stage
from kinema_stage import main, stacks
from kinema_stage.pace import Rule
from kinema_stage.workspace import FolderWorkspace

from tests.unit.stage.support import check_config, context_of, deadline


def test_a_stage_that_hangs_leaves_stacks_a_sentence_and_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(Rule, "of", lambda config: Rule(floor=0, override=0.2))
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setenv("KINEMA_TERMINATION_LOG", str(tmp_path / "termination"))
    context = context_of(check_config(tmp_path))
    watchdog = main.watch(context)
    assert watchdog is not None
    try:
        context.progress.report(done=0, total=4)
        context.progress.report(done=1, total=4)
        deadline(lambda: bool(codes), what="the watchdog ends the process")
    finally:
        watchdog.stop()
        context.progress.close(success=False)
    assert codes == [Exit.STALLED]
    end = Termination.model_validate_json((tmp_path / "termination").read_bytes())
    assert (end.code, end.reason) == (Exit.STALLED, "Stalled")
    assert end.message.startswith("worker 0 did not move for ")
    assert "the limit is 0 s" in end.message
    path = stacks.path_of(context.config, rank=0)
    assert end.stacks == context.workspace.uri(path)
    assert "most recent call first" in context.workspace.read(path).decode()
    assert "lost" in end.seconds


def test_train_is_watched_where_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "WATCH_THEIR_OWN", frozenset({Stage.CHECK}))
    assert main.watch(context_of(check_config(tmp_path))) is None


def test_a_workspace_that_hangs_holds_up_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = threading.Event()

    class Hung(FolderWorkspace):
        def write(self, *args: Any, **kwargs: Any) -> None:
            release.wait()

    try:
        assert stacks.store(Hung(f"file://{tmp_path}"), "stacks.txt", "thread 1 waits", timeout=0.05) is None
    finally:
        release.set()
    assert "thread 1 waits" in capsys.readouterr().err


def test_a_process_that_is_gone_has_no_state() -> None:
    assert stacks.state(os.getpid()) == "R"
    assert stacks.state(2**22 + 1) == ""
    assert f"thread {os.getpid()}" in stacks.foreign(os.getpid())
