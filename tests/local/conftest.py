# SPDX-License-Identifier: Apache-2.0
"""The toy model and four videos in a folder that stands for the examples' claim."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_api.catalogue import entry
from kinema_trainer import tiny

from tests.local import command
from tests.slow.pipeline import MODEL, make_dataset

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "wan-job.yaml"
STEPS = 24


@dataclass
class Laptop:
    """A folder for the claim, one for the command's state, and the job file."""

    root: Path
    volume: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def job(self, name: str, **stages: Any) -> Path:
        """The example under another name and with other stages."""
        found = yaml.safe_load(EXAMPLE.read_text())
        found["metadata"]["name"] = name
        found["spec"]["defaults"]["nodes"] = 1
        train = {"steps": STEPS, "batchPerDevice": 1, "checkpoint": {"everySteps": 4}}
        sample = {"seeds": [0], "prompts": ["a rabbit"], "steps": 4}
        found["spec"]["stages"] = {**found["spec"]["stages"], "train": train, "sample": sample, **stages}
        found["spec"]["policy"] = {"restarts": {"limit": 1, "backoffSeconds": 0}}
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(found))
        return file

    def start(self, file: Path, *options: str) -> subprocess.Popen[str]:
        """Start the command in a session of its own, as a shell does."""
        volume = ("--volume", f"kinema-workspace={self.volume}")
        process = command.start(file, self.root / "state", *volume, *options)
        self.processes.append(process)
        return process

    def run(self, file: Path, *options: str) -> tuple[int, str]:
        """Exit status and output of the command."""
        process = self.start(file, *options)
        out, _ = process.communicate(timeout=400)
        return process.returncode, out

    def read_until(self, process: subprocess.Popen[str], said: str) -> str:
        """The output up to the first line with `said`."""
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if said in line:
                return seen
        raise AssertionError(f"it ended without {said!r}:\n{seen}")

    def folder(self, name: str) -> Path:
        """The job's private folder."""
        (found,) = (self.volume / "kinema/jobs/local").glob(f"{name}-????????")
        return found

    def steps(self, name: str) -> list[int]:
        """The steps that training has written down."""
        text = (self.folder(name) / "metrics.jsonl").read_text()
        return [json.loads(line)["step"] for line in text.splitlines()]


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the claim, shared by all tests as jobs share a workspace."""
    volume = tmp_path_factory.mktemp("claim")
    videos = make_dataset(volume / "demo" / "videos")
    tiny.make(volume / "demo" / "wan2.1-tiny", spec=entry(MODEL), videos=videos)
    return volume


@pytest.fixture
def laptop(tmp_path: Path, volume: Path) -> Iterator[Laptop]:
    """A machine; whatever still runs on it at the end is killed."""
    found = Laptop(tmp_path, volume)
    yield found
    for process in found.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            process.kill()
        process.wait()


def deadline(condition: Callable[[], bool], *, seconds: float = 60.0, what: str) -> None:
    """Wait until a condition holds."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError(f"{what} did not come within {seconds} s")
