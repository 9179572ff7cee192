# SPDX-License-Identifier: Apache-2.0
"""Several processes encode one artifact: each shard once, also when one of them is killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kinema_api.exits import Exit
from kinema_stage import artifact
from kinema_stage.clips import Clip
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer.data.shards import ShardIndex

from tests.stages.features import harness
from tests.waiting import until

FOLDER = "artifacts/features/features0"
NEVER = -1


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    return FolderWorkspace(f"file://{tmp_path / 'workspace'}")


@pytest.fixture
def clips(tmp_path: Path, workspace: FolderWorkspace) -> tuple[Clip, ...]:
    """Eight clips: four shards of two."""
    for number in range(4):
        harness.make_video(tmp_path / "videos" / f"v{number}.mp4", seed=number, frames=10)
    return harness.list_clips(workspace, tmp_path / "videos", key="prepare0")


def assert_complete(workspace: FolderWorkspace, clips: tuple[Clip, ...]) -> None:
    assert artifact.published(workspace, FOLDER) is not None
    assert ShardIndex.open(workspace.local(FOLDER)).keys == [clip.key for clip in clips]
    assert len(list(ShardIndex.open(workspace.local(FOLDER)))) == len(clips) == 8
    assert harness.encoded_keys(workspace, FOLDER) == sorted(clip.key for clip in clips)


def test_two_workers_of_a_job_share_the_shards(
    tmp_path: Path, workspace: FolderWorkspace, weights: Path, clips: tuple[Clip, ...]
) -> None:
    config = harness.make_config(workspace, weights, workers=2)
    # The first one freezes in its second shard before the other one begins, so neither can do all of it alone.
    with harness.workers(tmp_path / "first", [(config, 0, 2)]) as (first,):
        until("worker 0 freezes in its second shard", lambda: first.hangs)
        with harness.workers(tmp_path / "second", [(config, 1, NEVER)]) as (second,):
            until("worker 1 does its share", lambda: len(harness.sidecars(workspace, FOLDER)) == 3)
            assert second.process.is_alive()
            first.process.kill()
            assert second.end().code == Exit.OK
    assert_complete(workspace, clips)
    holders = {sidecar.shard: sidecar.holder[-1] for sidecar in harness.sidecars(workspace, FOLDER)}
    assert holders == {
        "shard-000000.tar": "0", "shard-000001.tar": "1", "shard-000002.tar": "1", "shard-000003.tar": "1"
    }  # fmt: skip


def test_two_jobs_at_once_encode_each_clip_once(
    tmp_path: Path, workspace: FolderWorkspace, weights: Path, clips: tuple[Clip, ...]
) -> None:
    jobs = [(harness.make_config(workspace, weights, uid=uid), 0, NEVER) for uid in ("uid-a", "uid-b")]
    with harness.workers(tmp_path, jobs) as started:
        ends = [worker.end() for worker in started]
    assert_complete(workspace, clips)
    assert [end.code for end in ends] == [Exit.OK, Exit.OK]
    assert sum(end.counts["encoded"] for end in ends) == 8
    assert all(end.counts["encoded"] + end.counts["skipped"] == 8 for end in ends)


def test_a_killed_worker_costs_one_shard_and_no_finished_one(
    tmp_path: Path, workspace: FolderWorkspace, weights: Path, clips: tuple[Clip, ...]
) -> None:
    config = harness.make_config(workspace, weights)
    with harness.workers(tmp_path, [(config, 0, 3)]) as (victim,):
        until("the worker freezes in the middle of its second shard", lambda: victim.hangs)
        finished = {path: workspace.read(path) for path in workspace.list(FOLDER)}
        victim.process.kill()
        victim.process.join()
        assert victim.process.exitcode == -signal.SIGKILL
    assert [path for path in finished if path.endswith(".tar")] == [f"{FOLDER}/shard-000000.tar"]
    other = harness.make_config(workspace, weights, uid="uid-2")
    with harness.workers(tmp_path, [(other, 0, NEVER)]) as (heir,):
        end = heir.end()
    assert (end.counts["encoded"], end.counts["skipped"]) == (6, 2)
    assert_complete(workspace, clips)
    assert {path: workspace.read(path) for path in finished} == finished


def test_a_restarted_pod_goes_on_without_waiting_for_its_own_claim(
    tmp_path: Path, workspace: FolderWorkspace, weights: Path, clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = harness.make_config(workspace, weights)
    with harness.workers(tmp_path, [(config, 0, 3)]) as (victim,):
        until("the worker freezes", lambda: victim.hangs)
        victim.process.kill()
        victim.process.join()
    # A wait would take longer than the test may.
    monkeypatch.setattr(harness, "TTL", 1e6)
    assert harness.run(config).counts["encoded"] == 8
    assert_complete(workspace, clips)
