# SPDX-License-Identifier: Apache-2.0
"""The features stage: what it encodes, what it does not encode again, and what it leaves out."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from kinema_api.catalogue import entry
from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Dataset
from kinema_api.job import Task
from kinema_api.names import ENV_SCRATCH, ENV_SECRETS
from kinema_stage import artifact, claim, s3
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer import tiny
from kinema_trainer.data.shards import ShardIndex, read_empty_text
from kinema_trainer.encoding.encoders import Encoders
from kinema_trainer.encoding.work import ShardEncoder, order
from kinema_trainer.stages import features

from tests.s3.bucket import at, object_store, secret
from tests.stages.features import harness
from tests.waiting import until

FOLDER = "artifacts/features/features0"


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    return FolderWorkspace(f"file://{tmp_path / 'workspace'}")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Five videos of one clip each."""
    folder = tmp_path / "videos"
    for number in range(5):
        harness.make_video(folder / f"v{number}.mp4", seed=number)
    return folder


def count_encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every call of the VAE."""
    calls: list[int] = []
    original = Encoders.latents

    def latents(self: Encoders, video: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        return original(self, video)

    monkeypatch.setattr(Encoders, "latents", latents)
    return calls


def test_every_clip_is_encoded_once(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    clips = harness.list_clips(workspace, videos, key="prepare0")
    end = harness.run(harness.make_config(workspace, weights))
    assert end.code == Exit.OK
    assert end.counts == {"clips": 5, "shards": 3, "encoded": 5, "reused": 0, "quarantined": 0, "skipped": 0}
    assert end.message == "5 clips, 3 shards, 5 encoded, 0 reused, 0 quarantined, 0 skipped"
    index = ShardIndex.open(workspace.local(FOLDER))
    assert index.keys == [clip.key for clip in clips]
    assert harness.encoded_keys(workspace, FOLDER) == sorted(index.keys)
    manifest = artifact.published(workspace, FOLDER)
    assert manifest is not None
    assert manifest.details["encoder"] == harness.ENCODER
    assert manifest.details["shards"] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert {".nv-meta/.info.json", "empty-text.pth", "shard-000002.tar.idx"} < set(manifest.files)


def test_latents_equal_a_direct_call_of_the_vae(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    clips = harness.list_clips(workspace, videos, key="prepare0")
    harness.run(harness.make_config(workspace, weights))
    vae = AutoencoderKLWan.from_pretrained(weights, subfolder="vae")
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    samples = list(ShardIndex.open(workspace.local(FOLDER)))
    for clip, sample in zip(clips, samples, strict=True):
        pixels = torch.from_numpy(clip.decode(videos / clip.video).copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with torch.no_grad():
            expected = (vae.encode(pixels).latent_dist.mode() - mean) / std
        torch.testing.assert_close(sample.latents[None], expected, atol=1e-5, rtol=0)
        assert sample.meta["caption"] == clip.caption
        assert (sample.meta["frames"], sample.meta["height"], sample.meta["width"]) == (5, 32, 48)
    assert not torch.allclose(samples[0].latents, samples[1].latents, atol=0.1)
    empty = read_empty_text(workspace.local(FOLDER))
    torch.testing.assert_close(
        empty, Encoders(weights, device=torch.device("cpu"), dtype=torch.float32, text_length=64).text("")
    )


def test_two_runs_write_the_same_bytes(tmp_path: Path, videos: Path, weights: Path) -> None:
    contents = []
    for name in ("a", "b"):
        workspace = FolderWorkspace(f"file://{tmp_path / name}")
        harness.list_clips(workspace, videos, key="prepare0")
        harness.run(harness.make_config(workspace, weights, uid=name))
        names = sorted(path.name for path in workspace.local(FOLDER).glob("shard-*.tar*"))
        contents.append({name: workspace.read(f"{FOLDER}/{name}") for name in names})
    assert len(contents[0]) == 6
    assert contents[0] == contents[1]


def test_a_finished_shard_is_never_encoded_again(
    workspace: FolderWorkspace, videos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    harness.run(harness.make_config(workspace, weights))
    workspace.delete(f"{FOLDER}/_SUCCESS.json")
    workspace.delete(f"{FOLDER}/shard-000001.json")
    calls = count_encodings(monkeypatch)
    end = harness.run(harness.make_config(workspace, weights, uid="uid-2"))
    assert len(calls) == 2
    assert (end.counts["encoded"], end.counts["skipped"]) == (2, 3)


def test_a_grown_dataset_encodes_only_what_is_new(
    workspace: FolderWorkspace, videos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    harness.run(harness.make_config(workspace, weights))
    before = {sample.key: sample for sample in ShardIndex.open(workspace.local(FOLDER))}
    harness.make_video(videos / "v00.mp4", seed=77)
    harness.make_video(videos / "v9.mp4", seed=99)
    grown = harness.list_clips(workspace, videos, key="prepare1")
    calls = count_encodings(monkeypatch)
    end = harness.run(harness.make_config(workspace, weights, key="features1", prepare="prepare1", uid="uid-2"))
    assert (end.counts["encoded"], end.counts["reused"], len(calls)) == (2, 5, 2)
    new = {clip.key for clip in grown} - before.keys()
    assert harness.encoded_keys(workspace, "artifacts/features/features1") == sorted(new)
    samples = ShardIndex.open(workspace.local("artifacts/features/features1"))
    assert samples.keys == [clip.key for clip in grown]
    for sample in samples:
        if sample.key in before:
            assert torch.equal(sample.latents, before[sample.key].latents)
            assert torch.equal(sample.text, before[sample.key].text)


def test_features_of_another_encoder_are_not_taken(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    harness.run(harness.make_config(workspace, weights))
    other = harness.make_config(workspace, weights, key="features1").model_copy(update={"encoder_key": "other"})
    assert harness.run(other).counts["reused"] == 0


def test_a_removed_artifact_is_encoded_again(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    harness.run(harness.make_config(workspace, weights))
    workspace.delete(f"{FOLDER}/shard-000000.tar")
    end = harness.run(harness.make_config(workspace, weights, key="features1", uid="uid-2"))
    assert (end.counts["encoded"], end.counts["reused"]) == (2, 3)


def test_a_clip_that_does_not_decode_is_left_out(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    clips = harness.list_clips(workspace, videos, key="prepare0")
    (videos / "v1.mp4").write_bytes(b"no video")
    end = harness.run(harness.make_config(workspace, weights))
    assert (end.counts["clips"], end.counts["quarantined"]) == (4, 1)
    assert harness.sidecars(workspace, FOLDER)[0].quarantined.keys() == {clips[1].key}
    assert "cannot be decoded" in harness.sidecars(workspace, FOLDER)[0].quarantined[clips[1].key]
    assert ShardIndex.open(workspace.local(FOLDER)).keys == [clip.key for clip in clips if clip != clips[1]]


def test_a_dataset_that_is_gone_is_no_bad_clip(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    shutil.rmtree(videos)
    with pytest.raises(StageError, match="put it back") as caught:
        harness.run(harness.make_config(workspace, weights))
    assert caught.value.code is Exit.STORAGE
    assert harness.sidecars(workspace, FOLDER) == []


def test_nothing_usable_is_an_error(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    for path in videos.glob("*.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(StageError, match="no clip could be read") as caught:
        harness.run(harness.make_config(workspace, weights))
    assert caught.value.code is Exit.DATA
    assert artifact.published(workspace, FOLDER) is None


def test_sigterm_leaves_between_clips_and_the_next_run_goes_on(
    workspace: FolderWorkspace, videos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = harness.list_clips(workspace, videos, key="prepare0")
    config = harness.make_config(workspace, weights)
    interrupted = threading.Event()
    original = ShardEncoder._features
    seen: list[str] = []

    def until_the_third(self: ShardEncoder, clip: Any, item: Any) -> dict[str, bytes]:
        seen.append(clip.key)
        if len(seen) == 3:
            interrupted.set()
        return original(self, clip, item)

    monkeypatch.setattr(ShardEncoder, "_features", until_the_third)
    with pytest.raises(StageError) as caught:
        features.run(harness.make(config, interrupted=interrupted), ttl=harness.TTL)
    assert caught.value.code is Exit.INTERRUPTED
    assert len(seen) == 3
    assert [sidecar.shard for sidecar in harness.sidecars(workspace, FOLDER)] == ["shard-000000.tar"]
    # Another worker need not wait for the claim of one that left.
    free = claim.try_claim(workspace, f"claims/{FOLDER}/shard-000001.tar", holder="another")
    assert free is not None
    free.release()
    harness.run(config)
    assert harness.encoded_keys(workspace, FOLDER) == sorted(clip.key for clip in clips)


def test_a_worker_that_lost_its_claim_writes_nothing(
    workspace: FolderWorkspace, videos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = harness.list_clips(workspace, videos, key="prepare0")
    original = ShardEncoder._features
    thief: list[claim.Claim] = []

    def rob(self: ShardEncoder, clip: Any, item: Any) -> dict[str, bytes]:
        if not thief:
            # The same holder may take over at once: what a replaced pod does.
            path = f"claims/{FOLDER}/shard-000000.tar"
            stolen = claim.try_claim(workspace, path, holder="uid-1/features/0", ttl=harness.TTL)
            assert stolen is not None
            thief.append(stolen)
            until("the robbed claim notices", lambda: not held[0].held)
            stolen.release()
        return original(self, clip, item)

    held: list[claim.Claim] = []
    encode = ShardEncoder.encode

    def remember(self: ShardEncoder, shard: Any, *, claim: claim.Claim) -> Any:
        held.append(claim)
        return encode(self, shard, claim=claim)

    monkeypatch.setattr(ShardEncoder, "_features", rob)
    monkeypatch.setattr(ShardEncoder, "encode", remember)
    harness.run(harness.make_config(workspace, weights))
    assert harness.encoded_keys(workspace, FOLDER) == sorted(clip.key for clip in clips)
    assert len(held) == 4


def test_what_killed_workers_left_half_written_is_removed(
    workspace: FolderWorkspace, videos: Path, weights: Path
) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    workspace.write(f"{FOLDER}/.kinema-tmp-0123", b"half a shard")
    harness.run(harness.make_config(workspace, weights))
    assert not workspace.exists(f"{FOLDER}/.kinema-tmp-0123")


@pytest.mark.parametrize(("task", "tokens"), [(Task.I2V, 17), (Task.FLF2V, 34)])
def test_a_task_that_is_given_frames_stores_what_they_become(
    workspace: FolderWorkspace, videos: Path, tmp_path: Path, task: Task, tokens: int
) -> None:
    spec = entry(f"wan2.1-{task}-tiny")
    pipeline = tmp_path / "pipeline"
    tiny.make(pipeline, spec=spec)
    harness.list_clips(workspace, videos, key="prepare0")
    config = harness.make_config(workspace, pipeline, task=task).model_copy(update={"model": spec})
    assert harness.run(config).counts["clips"] == 5
    samples = ShardIndex.open(workspace.local(FOLDER))
    for sample in samples:
        assert sample.condition is not None and sample.image is not None
        assert sample.condition.shape == sample.latents.shape
        assert sample.image.shape == (tokens, 32)
        assert not torch.equal(sample.condition, sample.latents)
    one, other = (sample.image for sample in (samples[0], samples[1]))
    assert one is not None and other is not None and not torch.equal(one, other)


def test_v2v_stores_what_t2v_does(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    harness.run(harness.make_config(workspace, weights, task=Task.V2V))
    sample = ShardIndex.open(workspace.local(FOLDER))[0]
    assert (sample.condition, sample.image) == (None, None)


def test_the_wait_for_others_ends_with_sigterm(workspace: FolderWorkspace, videos: Path, weights: Path) -> None:
    harness.list_clips(workspace, videos, key="prepare0")
    others = [
        claim.try_claim(workspace, f"claims/{FOLDER}/shard-{index:06d}.tar", holder="other") for index in range(3)
    ]
    interrupted = threading.Event()
    context = harness.make(harness.make_config(workspace, weights), interrupted=interrupted)
    timer = threading.Timer(0.5, interrupted.set)
    timer.start()
    with pytest.raises(StageError) as caught:
        features.run(context)
    timer.join()
    assert caught.value.code is Exit.INTERRUPTED
    assert harness.sidecars(workspace, FOLDER) == []
    for other in others:
        assert other is not None
        other.release()


@pytest.mark.parametrize(("count", "workers"), [(7, 3), (2, 4), (1, 1), (0, 2)])
def test_each_worker_begins_with_its_own_shards(count: int, workers: int) -> None:
    for worker in range(workers):
        route = order(count, worker=worker, workers=workers)
        assert sorted(route) == list(range(count))
        own = [index for index in range(count) if index % workers == worker]
        assert route[: len(own)] == own


def test_a_video_in_a_bucket_is_copied_once_for_all_its_clips(
    workspace: FolderWorkspace, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_SECRETS, str(tmp_path / "secrets"))
    monkeypatch.setenv(ENV_SCRATCH, str(tmp_path / "scratch"))
    secret(tmp_path / "secrets")
    for number in range(2):
        harness.make_video(tmp_path / f"videos/v{number}.mp4", seed=number, frames=3 * harness.GEOMETRY.frames)
    clips = harness.list_clips(workspace, tmp_path / "videos", key="prepare0")
    copied: list[str] = []
    download = s3.Store.download

    def counted(self: s3.Store, path: str, *args: Any, **kwargs: Any) -> None:
        copied.append(path)
        download(self, path, *args, **kwargs)

    monkeypatch.setattr(s3.Store, "download", counted)
    with object_store() as store:
        store.put(tmp_path / "videos", "videos")
        config = harness.make_config(workspace, weights, per_shard=8)
        end = harness.run(config.model_copy(update={"dataset": Dataset(**at(store.url, "videos"))}))
    assert len(clips) >= 4
    assert end.counts["encoded"] == len(clips)
    assert copied == ["v0.mp4", "v1.mp4"]
    assert not [path for path in (tmp_path / "scratch").rglob("*.mp4")]
