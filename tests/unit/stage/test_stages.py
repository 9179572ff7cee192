# SPDX-License-Identifier: Apache-2.0
"""check and prepare, over real videos."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.inputs import Dataset
from kinema_api.names import Stage
from kinema_api.settings import PrepareSettings
from kinema_stage import artifact, clips
from kinema_stage.context import Context
from kinema_stage.quarantine import Quarantined, Reason
from kinema_stage.stages import check, prepare
from kinema_stage.workspace import FolderWorkspace

from tests.unit.stage.support import (
    PREPARE,
    captioned,
    check_config,
    context_of,
    make_video,
    numbers,
    prepare_config,
)


def run_check(tmp_path: Path) -> Termination:
    return check.run(context_of(check_config(tmp_path)))


def run_prepare(tmp_path: Path, *, uid: str = "11111111-2222", settings: PrepareSettings = PREPARE) -> Termination:
    config = check_config(tmp_path, uid=uid, prepare=settings)
    key = check.run(context_of(config)).keys["prepare"]
    return prepare.run(context_of(prepare_config(config, key)))


def read_clips(tmp_path: Path, end: Termination) -> tuple[clips.Clip, ...]:
    assert end.artifact is not None
    workspace = FolderWorkspace(f"file://{tmp_path}/work")
    return clips.read(workspace, end.artifact.removeprefix(workspace.uri() + "/"))


def failure(run: object) -> StageError:
    assert callable(run)
    with pytest.raises(StageError) as caught:
        run()
    return caught.value


def test_check_counts_resolves_and_reports_what_exists(tmp_path: Path) -> None:
    captioned(tmp_path / "data" / "a.mp4")
    make_video(tmp_path / "data" / "b.mp4")
    end = run_check(tmp_path)
    assert end.code == 0
    assert end.counts == {"videos": 2, "usable": 1}
    assert set(end.keys) == {"prepare", "encoder", "features", "convert"}
    assert end.existing == []
    workspace = FolderWorkspace(f"file://{tmp_path}/work")
    assert workspace.list("") == [], "the probe leaves nothing"

    for stage in (Stage.PREPARE, Stage.CONVERT):
        key = end.keys[stage.value]
        artifact.publish(workspace, f"artifacts/{stage}/{key}", artifact.Manifest(stage=stage, key=key, job="x/y"))
    found = workspace.local(f"artifacts/prepare/{end.keys['prepare']}/{artifact.MANIFEST}")
    os.utime(found, (0, 0))
    again = run_check(tmp_path)
    assert again.keys == end.keys
    assert again.existing == ["prepare", "convert"]
    # A collection that began before this job was made takes it for young.
    assert found.stat().st_mtime > time.time() - 600


def test_keys_follow_their_inputs(tmp_path: Path) -> None:
    video = captioned(tmp_path / "data" / "a.mp4")
    base = run_check(tmp_path).keys
    video.with_suffix(".txt").write_text("other words")
    words = run_check(tmp_path).keys
    assert {name for name in base if base[name] != words[name]} == {"prepare", "features"}
    tensors = tmp_path / "weights" / "transformer" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\1")
    assert {name for name, key in run_check(tmp_path).keys.items() if words[name] != key} == {"convert"}
    (tmp_path / "weights" / "tokenizer" / "tokenizer.json").write_text('{"new": 1}')
    assert {name for name, key in run_check(tmp_path).keys.items() if words[name] != key} == {
        "convert",
        "encoder",
        "features",
    }


def test_check_refuses_a_dataset_without_one_usable_video(tmp_path: Path) -> None:
    make_video(tmp_path / "data" / "a.mp4")
    error = failure(lambda: run_check(tmp_path))
    assert error.code is Exit.DATA
    assert "1 MissingCaption (for instance a.mp4: there is no a.txt or .json beside it)" in error.message

    listing = tmp_path / "l.csv"
    listing.write_text("video,caption\ngone.mp4,words\n")
    config = check_config(tmp_path, dataset=Dataset.model_validate({"uri": f"file://{listing}", "format": "csv"}))
    error = failure(lambda: check.run(context_of(config)))
    assert error.code is Exit.DATA
    assert f"1 cannot be opened (for instance {tmp_path}/gone.mp4)" in error.message


@pytest.mark.parametrize(
    ("call", "number", "code", "text"),
    [
        ("fsync", errno.ENOSPC, Exit.USER, "is full; free space or enlarge the volume"),
        ("fsync", errno.EDQUOT, Exit.USER, "is full"),
        ("fsync", errno.EROFS, Exit.USER, "is mounted read-only"),
        ("fsync", errno.EIO, Exit.STORAGE, "cannot be used"),
        ("link", errno.EPERM, Exit.USER, "has no hard links"),
        ("link", errno.ENOTSUP, Exit.USER, "has no hard links"),
    ],
)
def test_a_workspace_that_only_the_user_can_mend_is_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: Exit, text: str
) -> None:
    def fail(*paths: object) -> None:
        if call == "link":
            raise OSError(number, os.strerror(number), str(paths[0]), None, str(paths[1]))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    error = failure(lambda: check.probe(FolderWorkspace(f"file://{tmp_path}")))
    assert error.code is code
    assert error.message.startswith(f"storage.uri: {tmp_path} ")
    assert text in error.message


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_a_workspace_of_another_user_says_who_needs_it(tmp_path: Path) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path}/work")
    workspace.write("x", b"")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.seteuid(65532)
        try:
            check.probe(workspace)
        except BaseException as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        assert "cannot be written by user" in pipe.read()


def test_prepare_cuts_every_good_video_and_sets_the_others_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    captioned(data / "long.mp4", "a long one", frames=40, fps=8)
    captioned(data / "fast.mkv", "a fast one", frames=60, fps=24)
    captioned(data / "deep" / "avi.avi", "an old one", frames=20, fps=8, codec="mpeg4")
    captioned(data / "short.mp4", frames=16)
    captioned(data / "slow.mp4", frames=40, fps=4)
    captioned(data / "garbage.mp4").write_bytes(b"garbage" * 100)
    whole = captioned(data / "cut.mp4", options={"movflags": "faststart"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    make_video(data / "silent.mp4")
    (data / "twin.mp4").write_bytes((data / "long.mp4").read_bytes())
    (data / "twin.txt").write_text("a long one")

    end = run_prepare(tmp_path)
    assert (end.code, end.reason) == (0, "Succeeded")
    assert end.counts == {"videos": 9, "clips": 4, "quarantined": 6}
    found = read_clips(tmp_path, end)
    assert [(clip.video, clip.start_seconds, clip.caption) for clip in found] == [
        ("deep/avi.avi", 0.0, "an old one"),
        ("fast.mkv", 0.0, "a fast one"),
        ("long.mp4", 0.0, "a long one"),
        ("long.mp4", 2.125, "a long one"),
    ]
    assert numbers(found[1].decode(data / found[1].video)) == list(range(0, 51, 3))
    assert numbers(found[3].decode(data / found[3].video)) == list(range(17, 34))

    folder = Path(end.artifact.removeprefix("file://") if end.artifact else "")
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    aside = {entry.video: entry.reason for entry in map(Quarantined.model_validate_json, lines)}
    assert aside == {
        "short.mp4": Reason.TOO_SHORT,
        "slow.mp4": Reason.RATE_TOO_LOW,
        "garbage.mp4": Reason.UNREADABLE,
        "cut.mp4": Reason.UNREADABLE,
        "silent.mp4": Reason.NO_CAPTION,
        "twin.mp4": Reason.DUPLICATE,
    }
    assert "slow.mp4 is set aside: its 4 frames a second" in caplog.text
    manifest = json.loads((folder / "_SUCCESS.json").read_text())
    assert manifest["counts"] == end.counts and manifest["job"] == "local/demo"
    assert set(manifest["files"]) == {"clips.jsonl", "quarantine.jsonl"}
    assert sorted(path.name for path in folder.iterdir()) == ["_SUCCESS.json", "clips.jsonl", "quarantine.jsonl"]


def test_a_listing_may_name_a_video_twice_and_one_that_is_gone(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4")
    listing = tmp_path / "l.jsonl"
    rows = [("a.mp4", "one"), ("a.mp4", "two"), ("gone.mp4", "three")]
    listing.write_text("".join(json.dumps({"video": video, "caption": text}) + "\n" for video, text in rows))
    data = Dataset.model_validate({"uri": f"file://{listing}", "format": "jsonl"})
    config = check_config(tmp_path, dataset=data)
    key = check.run(context_of(config)).keys["prepare"]
    end = prepare.run(context_of(prepare_config(config, key)))
    assert end.counts == {"videos": 3, "clips": 4, "quarantined": 1}
    found = read_clips(tmp_path, end)
    assert [clip.caption for clip in found] == ["one", "one", "two", "two"]
    assert len({clip.key for clip in found}) == 4


def test_no_clip_at_all_fails_with_the_counts_of_reasons(tmp_path: Path) -> None:
    captioned(tmp_path / "data" / "a.mp4", frames=5)
    captioned(tmp_path / "data" / "b.mp4").write_bytes(b"junk")
    captioned(tmp_path / "data" / "c.mp4", frames=6)
    error = failure(lambda: run_prepare(tmp_path))
    assert error.code is Exit.DATA
    assert "none of the 3 videos of the dataset gave a clip: 2 TooShort (for instance a.mp4: its 0.6" in error.message
    assert "1 UnreadableVideo (for instance b.mp4: it cannot be decoded: Invalid data found" in error.message
    listed = error.message.rpartition("file://")[2]
    assert len(Path(listed).read_text().splitlines()) == 3
    assert not (Path(listed).parent / "_SUCCESS.json").exists()


def test_two_jobs_at_once_do_the_work_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        captioned(tmp_path / "data" / f"{name}.mp4", name, frames=20)
    check_config(tmp_path)
    entered = threading.Barrier(2)
    worked: list[str] = []
    real = prepare._prepare

    def counted(context: Context) -> artifact.Manifest:
        worked.append(context.holder)
        return real(context)

    def job(uid: str) -> Termination:
        entered.wait()
        return run_prepare(tmp_path, uid=uid)

    monkeypatch.setattr(prepare, "_prepare", counted)
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(job, ["aaaaaaaa", "bbbbbbbb"]))
    assert len(worked) == 1
    assert sorted(end.reason for end in ends) == ["ArtifactExists", "Succeeded"]
    assert ends[0].digest == ends[1].digest and ends[0].counts == ends[1].counts


def test_a_killed_attempt_is_taken_up_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        captioned(tmp_path / "data" / f"{name}.mp4", name, frames=20)
    monkeypatch.setattr(prepare, "PART", 2)
    real = prepare._probe_part
    probed: list[int] = []

    def part(context: Context, data: Dataset, videos: list[str], start: int) -> prepare.Part:
        if start == 2 and not probed.count(2):
            probed.append(start)
            raise SystemExit("killed")
        probed.append(start)
        return real(context, data, videos, start)

    monkeypatch.setattr(prepare, "_probe_part", part)
    with pytest.raises(SystemExit):
        run_prepare(tmp_path)
    assert run_prepare(tmp_path).counts == {"videos": 4, "clips": 4, "quarantined": 0}
    assert probed == [0, 2, 2], "the first part was not probed again"


def test_sigterm_ends_prepare_with_its_own_code(tmp_path: Path) -> None:
    captioned(tmp_path / "data" / "a.mp4")
    config = check_config(tmp_path)
    key = check.run(context_of(config)).keys["prepare"]
    interrupted = threading.Event()
    context = context_of(prepare_config(config, key), interrupted=interrupted)
    interrupted.set()
    assert failure(lambda: prepare.run(context)).code is Exit.INTERRUPTED
    interrupted.clear()
    assert prepare.run(context).code == 0, "the claim was given back"


def test_a_dataset_that_changed_after_check_is_not_published_under_its_key(tmp_path: Path) -> None:
    video = captioned(tmp_path / "data" / "a.mp4")
    config = check_config(tmp_path)
    key = check.run(context_of(config)).keys["prepare"]
    video.with_suffix(".txt").write_text("other words")
    error = failure(lambda: prepare.run(context_of(prepare_config(config, key))))
    assert error.code is Exit.USER
    assert "changed after it was checked" in error.message
    assert not (tmp_path / "work" / "artifacts").exists()


def test_a_cap_limits_the_clips_of_a_video_and_keeps_their_keys(tmp_path: Path) -> None:
    captioned(tmp_path / "data" / "a.mp4", frames=60, fps=8)
    every = read_clips(tmp_path, run_prepare(tmp_path))
    video = PREPARE.video.model_copy(update={"clips_per_video": 1})
    capped = read_clips(tmp_path, run_prepare(tmp_path, settings=PrepareSettings(video=video)))
    assert [clip.start_seconds for clip in every] == [0, 17 / 8, 34 / 8]
    assert capped == every[1:2]
