# SPDX-License-Identifier: Apache-2.0
"""`kinema run --local` with dataset, weights and workspace in a bucket, through a network that fails."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from kinema_api.catalogue import entry
from kinema_api.exits import Exit
from kinema_trainer import tiny

from tests.local import command
from tests.s3 import job as jobs
from tests.s3.bucket import ObjectStore, object_store, secret
from tests.s3.faults import FAULTS, FaultyProxy
from tests.slow.pipeline import CAPTIONS, MODEL, make_dataset
from tests.waiting import until

pytestmark = pytest.mark.timeout(1200)

STEPS, EVERY = 16, 4
STAGES = ("check", "prepare", "features", "convert", "train", "export", "sample")


@dataclass
class Machine:
    """A machine whose only storage is a bucket behind a network that fails."""

    root: Path
    store: ObjectStore
    proxy: FaultyProxy
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def job(self, name: str, *, url: str | None = None, steps: int = STEPS, **spec: Any) -> Path:
        """The file of a job."""
        stages = {
            "features": {"clipsPerShard": 1},
            "train": {"steps": steps, "batchPerDevice": 1, "checkpoint": {"everySteps": EVERY}},
            "sample": {"prompts": ["a rabbit"], "steps": 2},
            **spec.pop("stages", {}),
        }
        policy = {"restarts": {"limit": 1, "backoffSeconds": 0}}
        file = self.root / f"{name}.yaml"
        made = jobs.job(url or self.proxy.url, name=name, **{"stages": stages, "policy": policy, **spec})
        file.write_text(yaml.safe_dump(made))
        return file

    def start(self, file: Path, *options: str) -> Command:
        """Start the command."""
        places = ("--secret", f"{jobs.SECRET}={self.root / jobs.SECRET}", "--scratch", str(self.root / "scratch"))
        process = command.start(file, self.root / "state", *places, *options)
        self.processes.append(process)
        return Command(process)

    def folder(self, name: str) -> str:
        """The job's folder in the workspace."""
        (found,) = {
            match[1]
            for key in self.store.sizes(f"{jobs.WORKSPACE}/")
            if (match := re.match(rf"(jobs/local/{name}-[0-9a-f]{{8}})/", key))
        }
        return found


@dataclass
class Command:
    """A run of the command."""

    process: subprocess.Popen[str]

    def end(self) -> tuple[int, str]:
        """Exit status and output."""
        out, _ = self.process.communicate(timeout=900)
        return self.process.returncode, out

    def workers(self) -> list[psutil.Process]:
        """Its training processes."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [found for found in below if "kinema_trainer.worker" in words(found) and "run" not in words(found)]


def words(process: psutil.Process) -> list[str]:
    """What a process was started with; a module's name is its last part."""
    try:
        return ["run" if word == "torch.distributed.run" else word for word in process.cmdline()]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("s3")
    secret(root, jobs.SECRET)
    videos = make_dataset(root / "videos")
    tiny.make(root / "weights", spec=entry(MODEL), videos=videos)
    with object_store(jobs.BUCKET) as store, FaultyProxy(store.port, share=0.05, seed=40, delay=1.5) as proxy:
        store.put(videos, jobs.VIDEOS)
        store.put(root / "weights", jobs.WEIGHTS)
        made = Machine(root, store, proxy)
        yield made
        for process in made.processes:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()


@pytest.fixture(scope="module")
def whole(machine: Machine) -> str:
    """The output of a job from its check to its samples; one of its training processes was killed on the way."""
    command = machine.start(machine.job("whole"), "--devices", "2")
    first = re.compile(rf"checkpoints/step-0*{EVERY}/_SUCCESS\.json$")
    until(
        "the first checkpoint",
        lambda: command.process.poll() is not None or any(map(first.search, machine.store.sizes())),
        seconds=300,
    )
    found = command.workers()
    if found:
        found[-1].kill()
    code, out = command.end()
    assert code == 0, out + "".join(path.read_text() for path in (machine.root / "state").glob("*/train-*.log"))
    assert len(found) == 2, out
    return out


def test_the_pipeline_ends_well(machine: Machine, whole: str) -> None:
    for stage in STAGES:
        assert f"{stage}: done" in whole
    folder = machine.folder("whole")
    assert f"done; results are in s3://{jobs.BUCKET}/{jobs.WORKSPACE}/{folder}/samples" in whole


def test_the_killed_training_reached_the_exact_last_step(machine: Machine, whole: str) -> None:
    assert re.search(r"train: .*SIGKILL.*; tries again in 0s, 1 of 1", whole), whole
    folder = machine.folder("whole")
    assert [line["step"] for line in jobs.lines(machine.store, folder, "metrics.jsonl")] == list(range(1, STEPS + 1))
    told = jobs.lines(machine.store, folder, "events.jsonl")
    events = [(line["event"], line["step"]) for line in told if line["event"] in ("started", "resumed", "ended")]
    assert events[0] == ("started", 0)
    assert events[-1] == ("ended", STEPS)
    assert [EVERY <= step < STEPS for name, step in events if name == "resumed"] == [True]


def test_all_that_is_published_is_whole(machine: Machine, whole: str) -> None:
    folders = jobs.published(machine.store)
    kinds = sorted(folder.split("/")[1 if folder.startswith("artifacts") else 3] for folder in folders)
    assert kinds == sorted(["prepare", "features", "convert", *["checkpoints"] * 3, "export", "samples"]), whole
    assert {"model_index.json", "transformer/config.json"} <= set(folders[f"{machine.folder('whole')}/export"])
    assert not [key for key in machine.store.sizes() if "/probes/" in key]
    assert "Uploads" not in machine.store.s3.list_multipart_uploads(Bucket=jobs.BUCKET)


def test_every_clip_was_encoded_once(machine: Machine, whole: str) -> None:
    audits = [key for key in machine.store.sizes() if "/audit/" in key]
    encoded = [clip for key in audits for clip in json.loads(machine.store.read(key) or b"")["encoded"]]
    assert len(set(encoded)) == len(encoded) == len(CAPTIONS), whole


def test_every_kind_of_fault_came_in(machine: Machine, whole: str) -> None:
    counts = machine.proxy.counts
    print(f"{counts.total()} calls: {dict(counts)}")
    assert all(counts[fault] > 0 for fault in FAULTS), counts
    faults = counts.total() - counts["ok"]
    assert 0.02 < faults / counts.total() < 0.08, counts


def test_another_job_shares_the_data_survives_an_outage_and_goes_on(machine: Machine, whole: str) -> None:
    sample = {"enabled": False}
    policy = {"restarts": {"limit": 0}}
    file = machine.job("second", stages={"export": sample, "sample": sample}, policy=policy)
    before = {key for key in machine.store.sizes() if "/artifacts/" in key}
    command = machine.start(file)
    until(
        "its first checkpoint",
        lambda: any("/second-" in key and "_SUCCESS" in key for key in machine.store.sizes()),
        seconds=300,
    )
    with machine.proxy.outage():
        code, out = command.end()
    for stage in ("prepare", "features", "convert"):
        assert f"{stage}: done: published already" in out
    assert code == Exit.STORAGE, out
    assert f"train failed: storage.endpoint: {machine.proxy.url} gives no answer for s3://" in out, out

    code, out = machine.start(file).end()
    assert code == 0, out
    folder = machine.folder("second")
    assert [line["step"] for line in jobs.lines(machine.store, folder, "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert {key for key in machine.store.sizes() if "/artifacts/" in key} == before
    jobs.published(machine.store)


def test_a_store_that_is_down_is_said_so(machine: Machine) -> None:
    with FaultyProxy(machine.store.port, share=1) as gone:
        url = gone.url
    code, out = machine.start(machine.job("down", url=url, policy={"restarts": {"limit": 0}})).end()
    assert code == Exit.STORAGE, out
    assert f"check failed: storage.endpoint: {url} cannot be reached" in out
