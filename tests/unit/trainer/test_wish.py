# SPDX-License-Identifier: Apache-2.0
"""A wish to profile: what may be written, and that it reaches the training processes once."""

from __future__ import annotations

import gzip
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema_stage.workspace import FolderWorkspace
from kinema_trainer import gang, launch
from kinema_trainer.numbers.profiling import Profiler
from kinema_trainer.numbers.reports import Inbox
from kinema_trainer.numbers.wish import FILE, Wish, WishError, Wishes, laid, lay

pytestmark = pytest.mark.unit

RUN = "jobs/team/wan-01234567"


def test_what_is_left_out_has_a_default() -> None:
    wish = Wish.parse("")
    assert (wish.steps, wish.ranks, wish.memory, wish.stacks) == (3, (0,), True, False)
    wish = Wish.parse("steps=5, ranks=2+0,memory=off,stacks=on,id=7")
    assert (wish.steps, wish.ranks, wish.memory, wish.stacks) == (5, (0, 2), False, True)
    assert wish.name != Wish.parse("steps=5, ranks=2+0,memory=off,stacks=on,id=8").name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps=0", "steps are 1 to 100"),
        ("steps=101", "steps are 1 to 100"),
        ("ranks=-1", "not negative"),
        ("steps=many", "write for instance steps=3"),
        ("memory=1", "neither on nor off"),
        ("trace=on", "unknown trace"),
    ],
)
def test_what_may_not_be_written(text: str, says: str) -> None:
    with pytest.raises(WishError, match=re.escape(says)):
        Wish.parse(text)


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    workspace = FolderWorkspace(f"file://{tmp_path}/workspace")
    workspace.local(RUN).mkdir(parents=True)
    return workspace


def test_a_file_in_the_runs_folder_is_taken_away_and_obeyed_once(workspace: FolderWorkspace) -> None:
    wishes = Wishes(workspace, RUN)
    assert wishes.take() is None
    workspace.write(f"{RUN}/{FILE}", b"steps=2\n")
    wish = wishes.take()
    assert wish is not None and wish.steps == 2
    assert wishes.take() is None and not workspace.exists(f"{RUN}/{FILE}")


def test_an_annotation_that_stays_is_obeyed_once_also_by_the_next_attempt(workspace: FolderWorkspace) -> None:
    wishes = Wishes(workspace, RUN)
    for _ in range(3):
        wishes.hear("steps=2")
    wish = wishes.take()
    assert wish is not None and wishes.take() is None
    workspace.write(f"{RUN}/{wish.folder(11)}/rank-0.json", b"{}")
    later = Wishes(workspace, RUN)
    later.hear("steps=2")
    assert later.take() is None
    later.hear("steps=2,id=2")
    assert later.take() is not None


def test_a_wish_that_is_none_hurts_nobody(workspace: FolderWorkspace, caplog: pytest.LogCaptureFixture) -> None:
    wishes = Wishes(workspace, RUN)
    wishes.hear("everything")
    assert wishes.take() is None
    assert "write for instance steps=3" in caplog.text


def test_a_store_that_fails_hurts_nobody_and_is_asked_again(
    workspace: FolderWorkspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(prefix: str) -> dict[str, int]:
        raise OSError(f"{prefix}: the store does not answer")

    wishes = Wishes(workspace, RUN)
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "sizes", fails)
        wishes.hear("steps=2")
        assert wishes.take() is None and wishes.take() is None
    assert caplog.text.count("the store does not answer") == 1
    wish = wishes.take()
    assert wish is not None and wish.steps == 2
    assert wishes.take() is None


def test_a_file_that_is_no_text_hurts_nobody(workspace: FolderWorkspace, caplog: pytest.LogCaptureFixture) -> None:
    workspace.write(f"{RUN}/{FILE}", b"\xff\xfe\x00")
    assert Wishes(workspace, RUN).take() is None
    assert "write for instance steps=3" in caplog.text
    assert not workspace.exists(f"{RUN}/{FILE}")


def test_the_stage_lays_a_wish_where_its_processes_look(tmp_path: Path) -> None:
    wishes = [Wish.parse("steps=7"), None]
    inbox = Inbox(tmp_path)
    child: Any = None
    watch = launch.Watch(
        child=child,
        inbox=inbox,
        interrupted=threading.Event(),
        on_step=lambda step: None,
        on_beat=lambda beat: None,
        keep=lambda rank, text: None,
        roll=gang.Roll(alone=True),
        wishes=lambda: wishes.pop(0),
    )
    for second in range(2):
        watch._hear(float(second))
    inbox.close()
    assert laid(tmp_path / FILE).steps == 7


def test_steps_are_profiled_from_the_next_one_on(tmp_path: Path, workspace: FolderWorkspace) -> None:
    def profiler(rank: int) -> Profiler:
        return Profiler(
            shared=tmp_path,
            workspace=workspace,
            run=RUN,
            rank=rank,
            device=torch.device("cpu"),
            moved=lambda: moves.append(rank),
        )

    moves: list[int] = []
    profilers = [profiler(rank) for rank in range(2)]
    for step in range(1, 8):
        if step == 4:
            lay(tmp_path, Wish.parse("steps=2,ranks=1"))
        torch.ones(3, 3) @ torch.full((3, 3), float(step))
        for one in profilers:
            one.step(step)
    (folder,) = workspace.local(f"{RUN}/profiles").iterdir()
    assert folder.name == f"step-00000005-{laid(tmp_path / FILE).name}"
    told = json.loads((folder / "rank-1.json").read_text())
    assert (told["first"], told["last"]) == (5, 6)
    assert not list(folder.glob("rank-0*"))
    events = json.loads(gzip.decompress((folder / "rank-1.trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 2
    assert "aten::mm" in (folder / "rank-1.operations.txt").read_text()
    assert set(moves) == {1}


def test_a_run_that_ends_in_between_leaves_nothing(tmp_path: Path, workspace: FolderWorkspace) -> None:
    one = Profiler(
        shared=tmp_path,
        workspace=workspace,
        run=RUN,
        rank=0,
        device=torch.device("cpu"),
        moved=lambda: None,
    )
    lay(tmp_path, Wish.parse(""))
    one.step(1)
    one.close()
    one.step(2)
    assert not workspace.exists(f"{RUN}/profiles")
