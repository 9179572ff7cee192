# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in a store without folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from kinema_stage.workspace import FolderWorkspace, Workspace
from kinema_trainer.checkpoints import dcp
from kinema_trainer.checkpoints.digests import file_digest
from kinema_trainer.checkpoints.ranges import Span, joined
from kinema_trainer.checkpoints.saver import plain_errors

from tests.unit.trainer.memory import MemoryWorkspace

FOLDER = "run/step-00000002"
BYTES = 4 << 20


@pytest.fixture(autouse=True)
def local_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINEMA_SCRATCH_DIR", str(tmp_path / "scratch"))


def tensors() -> dict[str, Tensor]:
    """Eight tensors of one size, and a small one."""
    stream = torch.Generator().manual_seed(3)
    large = {f"layer{number}": torch.randn(BYTES // 4, generator=stream) for number in range(8)}
    return {**large, "bias": torch.randn(5, generator=stream).bfloat16()}


def write(workspace: Workspace, *, moved: Callable[[int], None] = lambda count: None) -> dict[str, Tensor]:
    made = tensors()
    with plain_errors():
        save(dict(made), storage_writer=dcp.writer(workspace, FOLDER, moved=moved), no_dist=True)
    return made


def read(workspace: Workspace, *names: str) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors().items() if name in names}
    with plain_errors():
        load(found, storage_reader=dcp.reader(workspace, FOLDER), no_dist=True)
    return found


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_what_was_written_is_read(tmp_path: Path, kind: str) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path}/workspace") if kind == "folder" else MemoryWorkspace()
    made = write(workspace)
    found = read(workspace, *made)
    assert all(torch.equal(found[name], tensor) for name, tensor in made.items())
    assert sorted(workspace.list(FOLDER)) == [f"{FOLDER}/.metadata", f"{FOLDER}/__0_0.distcp"]


def test_only_the_wanted_bytes_are_read() -> None:
    workspace = MemoryWorkspace()
    made = write(workspace)
    found = read(workspace, "layer1", "layer6", "bias")
    assert torch.equal(found["layer6"], made["layer6"])
    assert {path for path, _, _ in workspace.ranges} == {f"{FOLDER}/__0_0.distcp"}
    assert len(workspace.ranges) == 3
    asked = sum(end - start for _, start, end in workspace.ranges)
    assert 2 * BYTES < asked < 2 * BYTES + 16384
    assert f"{FOLDER}/__0_0.distcp" not in workspace.whole


def test_neighbours_are_read_together() -> None:
    workspace = MemoryWorkspace()
    read(workspace, *write(workspace))
    assert len(workspace.ranges) == 1


def test_pieces_larger_than_a_request_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcp, "JOIN_BYTES", 3 * BYTES)
    workspace = MemoryWorkspace()
    made = write(workspace)
    found = read(workspace, *made)
    assert all(torch.equal(found[name], tensor) for name, tensor in made.items())
    assert len(workspace.ranges) >= 3
    assert workspace.ranges == sorted(workspace.ranges)


def test_writing_is_seen_while_it_goes_on_and_leaves_no_scratch(tmp_path: Path) -> None:
    workspace = MemoryWorkspace()
    counts: list[int] = []
    write(workspace, moved=counts.append)
    assert sum(counts) == sum(workspace.sizes(FOLDER).values())
    assert len(counts) > 8
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]


def test_a_failed_upload_is_told_and_leaves_no_checkpoint() -> None:
    workspace = MemoryWorkspace()
    workspace.broken = OSError("the bucket is gone")
    with pytest.raises(OSError, match="the bucket is gone"):
        write(workspace)
    assert workspace.files == {}


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_the_writer_knows_the_digest_of_every_file(tmp_path: Path, kind: str) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path}/workspace") if kind == "folder" else MemoryWorkspace()
    writer = dcp.writer(workspace, FOLDER, moved=lambda count: None)
    with plain_errors():
        save(dict(tensors()), storage_writer=writer, no_dist=True)
    sizes = workspace.sizes(FOLDER)
    assert {f"{FOLDER}/{name}" for name in writer.digests} == set(sizes)
    for path, size in sizes.items():
        assert writer.digests[Path(path).name] == file_digest(workspace, path, size=size)
        content = workspace.read(path)
        assert writer.digests[Path(path).name] == hashlib.blake2b(content, digest_size=16).hexdigest()


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ([], []),
        ([(5, 9), (0, 5)], [(0, 9)]),
        ([(0, 4), (6, 8)], [(0, 8)]),
        ([(0, 4), (7, 8)], [(0, 4), (7, 8)]),
        ([(0, 30), (30, 31)], [(0, 30), (30, 31)]),
        ([(0, 6), (3, 9), (3, 9), (4, 5)], [(0, 9)]),
        ([(0, 6), (6, 10), (10, 12)], [(0, 10), (10, 12)]),
    ],
)
def test_spans_are_joined(spans: list[tuple[int, int]], found: list[tuple[int, int]]) -> None:
    assert joined([Span(*span) for span in spans], limit=10, gap=2) == found
