# SPDX-License-Identifier: Apache-2.0
"""`kinema gc`: what goes and what stays, on paper and on a real folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kinema_api.exits import Exit
from kinema_api.garbage import Found, GarbageConfig, choose
from kinema_api.inputs import Storage
from kinema_cli import gc_cluster
from kinema_cli.errors import CommandError
from kinema_cli.gc import folders_of, keep_local, same, size_text
from kinema_cli.records import Record
from kinema_kube.resources import JOBS, PODS, VIDEO_TRAINING_JOBS

from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi, Request

DAY = 86_400.0
NOW = 100 * DAY


def found(folder: str, *, days: float = 2, **more: Any) -> Found:
    return Found(**{"folder": folder, "size": 1, "newest": NOW - days * DAY, "published": True, **more})


def going(*items: Found, keep: tuple[str, ...] = (), runs: bool = False, age: float = DAY) -> list[str]:
    chosen = choose(items, keep=keep, runs=runs, min_age_seconds=age, now=NOW)
    return [item.folder for item in chosen]


def test_what_no_job_refers_to_goes_once_it_is_old() -> None:
    items = [
        found("artifacts/convert/old"),
        found("artifacts/convert/young", days=0.5),
        found("artifacts/convert/used"),
    ]
    assert going(*items, keep=("artifacts/convert/used",)) == ["artifacts/convert/old"]


def test_features_that_stay_keep_their_clips() -> None:
    used = found("artifacts/features/a", prepare="p")
    gone = found("artifacts/features/b", prepare="q")
    clips = [found("artifacts/prepare/p"), found("artifacts/prepare/q")]
    assert going(used, gone, *clips, keep=("artifacts/features/a",)) == ["artifacts/features/b", "artifacts/prepare/q"]


def test_clips_of_features_that_are_too_young_to_go_stay() -> None:
    young = found("artifacts/features/a", prepare="p", days=0.1)
    assert going(young, found("artifacts/prepare/p")) == []


def test_clips_stay_while_one_of_two_features_needs_them() -> None:
    used, gone = found("artifacts/features/a", prepare="p"), found("artifacts/features/b", prepare="p")
    clips = found("artifacts/prepare/p")
    assert going(used, gone, clips, keep=("artifacts/features/a",)) == ["artifacts/features/b"]


def test_a_live_claim_protects_even_without_a_minimum_age() -> None:
    alive = found("artifacts/features/a", published=False, claimed=NOW - 20)
    dead = found("artifacts/features/b", published=False, claimed=NOW - 2 * DAY)
    assert going(alive, dead, age=0) == ["artifacts/features/b"]


def test_private_folders_go_only_when_asked_for() -> None:
    mine, other = found("jobs/a/mine-1"), found("jobs/a/other-2")
    assert going(mine, other, keep=("jobs/a/mine-1",)) == []
    assert going(mine, other, keep=("jobs/a/mine-1",), runs=True) == ["jobs/a/other-2"]


def workspace(root: Path) -> Path:
    """A workspace of which everything is two days old."""
    details = {"artifacts/features/f1": {"prepare": "p1"}, "artifacts/features/f2": {"prepare": "p2"}}
    for folder in (*details, "artifacts/prepare/p1", "artifacts/prepare/p2", "artifacts/convert/c"):
        (root / folder).mkdir(parents=True)
        (root / folder / "data").write_bytes(bytes(2048))
        (root / folder / "_SUCCESS.json").write_text(json.dumps({"details": details.get(folder, {})}))
    (root / "artifacts/features/half").mkdir()
    (root / "artifacts/features/half/shard").write_bytes(bytes(10))
    (root / "jobs/local/gone-12345678").mkdir(parents=True)
    (root / "jobs/local/gone-12345678/metrics.jsonl").write_text("{}\n")
    past = time.time() - 2 * DAY
    for path in [*root.rglob("*"), root]:
        os.utime(path, (past, past))
    return root


def gc_here(*arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kinema_cli", "gc", "--local", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, input=said)


def record(state: Path, root: Path, keys: dict[str, str]) -> None:
    made = Record(
        namespace="local", name="j", folder="jobs/local/j-1", storage=Storage(uri=f"file://{root}"), keys=keys
    )
    (state / "local-j-1").mkdir(parents=True)
    (state / "local-j-1" / "job.json").write_text(made.model_dump_json(by_alias=True))


def left(root: Path) -> set[str]:
    return {
        path.relative_to(root).as_posix() for pattern in ("artifacts/*/*", "jobs/*/*") for path in root.glob(pattern)
    }


def test_local_collection(tmp_path: Path) -> None:
    root, state = workspace(tmp_path / "work"), tmp_path / "state"
    record(state, root, {"prepare": "p1", "encoder": "e", "features": "f1", "convert": "other"})
    before = left(root)
    options = ("--storage", f"file://{root}", "--state", str(state))

    listed = gc_here(*options, "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[-1].endswith("in 4 folders; 3 stay")
    assert "artifacts/features/half  (never finished)" in listed.stdout
    assert left(root) == before

    refused = gc_here(*options, said="n\n")
    assert refused.returncode == 1
    assert left(root) == before

    done = gc_here(*options, "--yes")
    assert done.returncode == 0, done.stderr
    assert left(root) == {"artifacts/features/f1", "artifacts/prepare/p1", "jobs/local/gone-12345678"}

    assert gc_here(*options, "--yes", "--runs").returncode == 0
    assert left(root) == {"artifacts/features/f1", "artifacts/prepare/p1"}


def test_young_folders_stay(tmp_path: Path) -> None:
    root = workspace(tmp_path / "work")
    done = gc_here("--storage", f"file://{root}", "--state", str(tmp_path), "--yes", "--min-age", "72")
    assert done.stdout.strip() == "freed 0 B in 0 folders; 7 stay"


def test_an_unreadable_manifest_stops_it_before_anything_goes(tmp_path: Path) -> None:
    root = workspace(tmp_path / "work")
    (root / "artifacts/features/f1/_SUCCESS.json").write_text("{")
    before = left(root)
    done = gc_here("--storage", f"file://{root}", "--state", str(tmp_path), "--yes")
    assert done.returncode == Exit.STORAGE
    assert "artifacts/features/f1/_SUCCESS.json is no manifest" in done.stderr
    assert left(root) == before


def test_a_missing_workspace_is_named(tmp_path: Path) -> None:
    done = gc_here("--storage", f"file://{tmp_path}/none", "--state", str(tmp_path))
    assert done.returncode == Exit.USER
    assert f"{tmp_path}/none is no folder" in done.stderr


@pytest.mark.parametrize("uri", ["s3://bucket/x", "pvc://claim/x", "file:///a b"])
def test_other_addresses_are_refused(uri: str) -> None:
    done = gc_here("--storage", uri)
    assert done.returncode == Exit.USER
    assert f"--storage {uri}: write file:///folder" in done.stderr


def test_only_jobs_of_the_same_workspace_count() -> None:
    here = Record(
        namespace="a", name="b", folder="jobs/a/b-1", storage=Storage(uri="file:///w/"), keys={"convert": "c"}
    )
    there = here.model_copy(update={"storage": Storage(uri="file:///v"), "folder": "jobs/a/b-2"})
    assert keep_local([here, there], Storage(uri="file:///w")) == ["artifacts/convert/c", "jobs/a/b-1"]
    assert not same(Storage(uri="s3://aaa/b"), Storage(uri="s3://aaa/b", endpoint="http://minio"))
    assert folders_of({"encoder": "e", "prepare": "p"}) == ["artifacts/prepare/p"]
    assert size_text(1536) == "1.5 KiB"


STORAGE = Storage(uri="pvc://training/kinema")


def vtj(name: str, *, namespace: str = "a", phase: str = "Running", keys: bool = True, uri: str = STORAGE.uri) -> Any:
    resolved = {"images": {"check": "stage:1"}, "keys": {"prepare": f"p-{name}", "convert": "c"} if keys else {}}
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"{name}-uid-long"},
        "spec": {"storage": {"uri": uri}, "defaults": {"pool": "cpu", "serviceAccountName": f"sa-{namespace}"}},
        "status": {"phase": phase, "resolved": resolved},
    }


def test_jobs_of_every_namespace_protect_what_they_refer_to() -> None:
    jobs = [vtj("one"), vtj("two", namespace="b"), vtj("else", uri="pvc://other/x")]
    shared = gc_cluster.sharers(jobs, STORAGE, namespace="a")
    assert shared.keep == (
        "artifacts/convert/c",
        "artifacts/prepare/p-one",
        "artifacts/prepare/p-two",
        "jobs/a/one-one-uid-",
        "jobs/b/two-two-uid-",
    )
    assert shared.image == "stage:1"


def test_a_job_that_has_not_checked_yet_stops_the_collection_unless_it_has_ended() -> None:
    with pytest.raises(CommandError, match="a/new may need any artifact"):
        gc_cluster.sharers([vtj("new", keys=False)], STORAGE, namespace="a")
    with pytest.raises(CommandError, match="a/fresh may need any artifact"):
        gc_cluster.sharers([{**vtj("fresh"), "status": {}}], STORAGE, namespace="a")
    ended = gc_cluster.sharers([vtj("bad", keys=False, phase="Failed")], STORAGE, namespace="a")
    assert ended.keep == ("jobs/a/bad-bad-uid-",)


def test_the_collecting_job_mounts_the_claim_and_keeps_the_restricted_standard() -> None:
    shared = gc_cluster.sharers([vtj("one")], STORAGE, namespace="a")
    body = gc_cluster.manifest(
        name="kinema-gc-1",
        namespace="a",
        config=GarbageConfig(storage=STORAGE, keep=list(shared.keep)),
        image="stage:1",
        spec=shared.spec,
    )
    pod = body["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "sa-a"
    assert pod["volumes"][1] == {"name": "workspace", "persistentVolumeClaim": {"claimName": "training"}}
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "kinema_stage.gc", "--config", "/etc/kinema/stage.json"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    config = json.loads(body["spec"]["template"]["metadata"]["annotations"]["kinema.dev/stage-config"])
    assert config["storage"]["uri"] == "file:///kinema/volumes/training/kinema"
    assert config["keep"] == list(shared.keep)
    with pytest.raises(CommandError, match="on volumes only"):
        gc_cluster.manifest(
            name="x", namespace="a", config=GarbageConfig(storage=Storage(uri="s3://abc/d")), image="i", spec={}
        )


def test_it_asks_the_cluster_and_the_namespace_that_the_context_names(
    api: FakeApi, kinema: Kinema, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = os.environ["KUBECONFIG"]
    monkeypatch.delenv("KUBECONFIG")
    result = {
        "removed": [{"folder": "artifacts/convert/old", "size": 2048, "why": "unused"}],
        "kept": 3,
        "dryRun": True,
    }
    api.logs["team/gc-pod"] = json.dumps(result)
    api.put(VIDEO_TRAINING_JOBS, vtj("one", namespace="team"))
    api.put(PODS, {"metadata": {"name": "gc-pod", "namespace": "team"}})

    def ended(request: Request) -> Any:
        if request.method == "GET" and request.path.startswith(f"{JOBS.path(namespace='team')}/kinema-gc-"):
            return 200, {"status": {"succeeded": 1}}
        return (200, {"items": [{"metadata": {"name": "gc-pod"}}]}) if request.path.endswith("/team/pods") else None

    api.hooks.append(ended)
    options = ("--storage", STORAGE.uri, "--dry-run", "--kubeconfig", kubeconfig, "--context", "fake")
    done = kinema("gc", *options)
    assert (done.code, done.err) == (0, "")
    assert "would free 2.0 KiB in 1 folders; 3 stay" in done.out
    (made,) = api.sent("POST", "/jobs")
    assert made.path == JOBS.path(namespace="team")
    assert not [path for path in api.objects if "/jobs/kinema-gc" in path], "the Job is gone again"
    assert "--context nowhere: the contexts of" in kinema("gc", *options[:-1], "nowhere").err
