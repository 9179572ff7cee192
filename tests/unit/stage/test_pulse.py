# SPDX-License-Identifier: Apache-2.0
"""Long transfers are not taken for a hang, neither by who copies nor by who waits for the copy."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from kinema_api.exits import Exit, Termination
from kinema_api.names import ENV_SCRATCH, ENV_SECRETS
from kinema_stage import main, pulse, s3, scratch
from kinema_stage.context import Context
from kinema_stage.workspace import open_workspace

from tests.s3.bucket import ObjectStore, object_store, secret, storage
from tests.s3.faults import FaultyProxy
from tests.unit.stage.support import check_config, context_of, deadline

PART, PARTS = 5 << 20, 4


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


def test_every_part_of_a_file_that_goes_or_comes_is_a_beat(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_SECRETS, str(tmp_path / "secrets"))
    monkeypatch.setenv(ENV_SCRATCH, str(tmp_path / "scratch"))
    by_parts = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=1)
    monkeypatch.setattr(s3, "_TRANSFER", by_parts)
    secret(tmp_path / "secrets")
    s3.client.cache_clear()
    source = tmp_path / "large"
    source.write_bytes(bytes(PARTS * PART))
    with FaultyProxy(server.port, share=0) as proxy:
        workspace = open_workspace(storage(proxy.url))
        calls: set[int] = set()
        with pulse.heard(lambda: calls.add(proxy.counts.total())):
            workspace.upload(source, "x/large")
            assert len(calls) >= PARTS
            calls.clear()
            assert (workspace.fetch("x") / "large").stat().st_size == PARTS * PART
            assert len(calls) >= PARTS
            calls.clear()
            workspace.read_range("x/large", start=0, end=PART)
            assert len(calls) == 1


def test_who_waits_for_a_copy_moves_as_long_as_the_copy_does(tmp_path: Path) -> None:
    beats: list[int] = []
    got = threading.Event()
    holder = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)

    def follow() -> None:
        with scratch.locked(tmp_path):
            got.set()

    follower = threading.Thread(target=follow, daemon=True)
    with pulse.heard(lambda: beats.append(1)):
        follower.start()
        for number in range(1, 4):
            deadline(lambda number=number: moved(holder) and len(beats) >= number, what="a beat of who waits")
        assert not got.is_set()
        os.close(holder)
        assert got.wait(10)
        follower.join()


def moved(holder: int) -> bool:
    """The copy goes on."""
    os.utime(holder)
    return True


def test_who_fills_a_folder_shows_it(tmp_path: Path) -> None:
    with scratch.locked(tmp_path):
        os.utime(tmp_path / ".lock", (1, 1))
        pulse.beat()
        assert (tmp_path / ".lock").stat().st_mtime > 1


def test_a_stage_hears_the_pulse_while_it_works_and_not_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(check_config(tmp_path))
    moves: list[int] = []

    def work(context: Context) -> Termination:
        pulse.beat()
        return Termination(code=Exit.OK)

    monkeypatch.setattr(context.progress, "moved", lambda: moves.append(1))
    monkeypatch.setattr(main, "make_context", lambda *args, **kwargs: context)
    monkeypatch.setattr(main, "read_config", lambda stage, path: context.config)
    monkeypatch.setattr(main, "implementation", lambda stage: work)
    main.execute(stage=context.config.stage, config=tmp_path, interrupted=context.interrupted)
    assert moves == [1]
    pulse.beat()
    assert moves == [1]
