# SPDX-License-Identifier: Apache-2.0
"""`kinema run --local` with the toy model, through the real stages."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import yaml

from kinema_api.exits import Exit

from tests.local.conftest import STEPS, Laptop

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
def test_the_whole_pipeline_and_again(laptop: Laptop) -> None:
    job = laptop.job("whole")
    code, out = laptop.run(job)
    assert code == 0, out
    for stage in ("check", "prepare", "features", "convert", "train", "export", "sample"):
        assert f"{stage}: done" in out
    assert f"train: 100 %, {STEPS}/{STEPS}, loss" in out
    folder = laptop.folder("whole")
    assert f"done; results are in file://{folder}/samples" in out
    assert (folder / "export" / "model_index.json").is_file()
    assert [path.stat().st_size > 0 for path in (folder / "samples").glob("*.mp4")] == [True]

    code, again = laptop.run(job)
    assert code == 0, again
    for stage in ("prepare", "features", "convert"):
        assert f"{stage}: done: published already" in again
    assert laptop.steps("whole") == list(range(1, STEPS + 1)), "a finished training takes no step twice"

    code, one = laptop.run(job, "--stage", "convert")
    assert code == 0, one
    assert [line.partition(":")[0] for line in one.splitlines() if ": done" in line] == ["check", "convert"]

    code, rest = laptop.run(job, "--from", "export")
    assert code == 0, rest
    assert [line.partition(":")[0] for line in rest.splitlines() if ": done" in line] == ["check", "export", "sample"]


@pytest.mark.slow
def test_ctrl_c_in_training_saves_and_the_next_run_reaches_the_exact_last_step(laptop: Laptop) -> None:
    last = 60
    train = {"steps": last, "batchPerDevice": 1, "checkpoint": {"everySteps": 20}}
    job = laptop.job("stopped", train=train, sample={"enabled": False})
    process = laptop.start(job)
    seen = laptop.read_until(process, ", loss ")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == Exit.INTERRUPTED, seen + out
    assert "train: told to save and stop" in out
    assert "stopped in train; the same command goes on from there" in out
    saved = laptop.steps("stopped")[-1]
    assert 1 <= saved < last

    code, out = laptop.run(job)
    assert code == 0, out
    assert f"train: 100 %, {last}/{last}, loss" in out
    (log,) = (laptop.root / "state").glob("*/train-2.log")
    assert f"going on from step {saved}" in log.read_text()
    assert laptop.steps("stopped") == list(range(1, last + 1)), "no step is lost and none is taken twice"


def test_a_job_that_runs_is_not_started_twice(laptop: Laptop) -> None:
    job = laptop.job("twice")
    process = laptop.start(job)
    laptop.read_until(process, "check: runs")
    code, out = laptop.run(job)
    assert (code, "twice runs on this machine already" in out) == (Exit.USER, True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)


def test_a_failed_stage_ends_the_command_with_its_code_and_is_not_tried_again(laptop: Laptop, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "demo").mkdir(parents=True)
    (empty / "demo" / "videos").mkdir()
    (empty / "demo" / "wan2.1-tiny").symlink_to(laptop.volume / "demo" / "wan2.1-tiny")
    laptop.volume = empty
    code, out = laptop.run(laptop.job("empty"))
    assert code == Exit.DATA, out
    assert out.count("check: runs") == 1
    (log,) = (tmp_path / "state").glob("*/check-1.log")
    assert f"its log: {log}" in out


def test_a_killed_stage_is_tried_again(laptop: Laptop, tmp_path: Path) -> None:
    """The interpreter kills the first attempt of check, as the kernel does when memory runs out."""
    job = laptop.job("killed")
    flag, python = tmp_path / "killed", tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *kinema_stage.main*) [ -e {flag} ] || {{ : > {flag}; kill -9 $$; }};; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    code, out = laptop.run(job, "--stage", "check", "--python", str(python))
    assert code == 0, out
    assert "check: killed by SIGKILL (exit code 137); tries again in 0s, 1 of 1" in out
    (config,) = (tmp_path / "state").glob("*/check-2.json")
    assert json.loads(config.read_text())["attempt"] == 2


def test_the_deadline_of_the_job_ends_the_run_and_says_so(laptop: Laptop, tmp_path: Path) -> None:
    """The interpreter never comes to an end with a stage."""
    job, python = laptop.job("slow"), tmp_path / "python"
    spec = yaml.safe_load(job.read_text())
    spec["spec"]["policy"]["deadlineSeconds"] = 3
    job.write_text(yaml.safe_dump(spec))
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *kinema_stage.main*) exec sleep 600;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    code, out = laptop.run(job, "--python", str(python))
    assert code == Exit.STALLED, out
    assert "check: failed: the run took longer than policy.deadlineSeconds, 3 s" in out
    assert out.count("check: runs") == 1, "there is no time for another attempt"
