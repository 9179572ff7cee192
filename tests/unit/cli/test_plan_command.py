# SPDX-License-Identifier: Apache-2.0
"""What `kinema run --local` makes of a job file before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_api.exits import Exit
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.pool import Accelerator
from kinema_api.stage import PrepareConfig, TrainConfig
from kinema_cli import course, jobfile, machine, places, process
from kinema_cli.errors import CommandError
from kinema_stage import progress, termination

ROOT = Path(__file__).resolve().parents[3]
JOB = ROOT / "examples" / "wan-job.yaml"
GOLDEN = Path(__file__).with_name("dry-run.txt")
CPU = machine.Machine(Accelerator.CPU, None)
KEYS = Keys(prepare="p", encoder="e", features="f", convert="c")


def job(tmp_path: Path, *, without: str = "", **changes: Any) -> Path:
    """The example with fields of its spec changed by dotted name."""
    found = yaml.safe_load(JOB.read_text())
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = found["spec"]
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    if without:
        found.pop(without)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(found))
    return file


def planned(file: Path, *, here: machine.Machine = CPU, devices: int | None = None) -> course.Course:
    """The course of a job whose one claim is /data."""
    found = jobfile.read(file)
    spec = places.localized(found.spec, volumes={"kinema-workspace": Path("/data")}, secrets=(), own=())
    return course.plan(found, spec, machine=here, devices=devices)


def kinema(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "kinema_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )


def test_dry_run_prints_the_plan_and_starts_nothing(tmp_path: Path) -> None:
    workspace, state = tmp_path / "data", tmp_path / "state"
    workspace.mkdir()
    done = kinema(
        *("run", "--local", str(JOB), "--dry-run", "--accelerator", "cpu", "--state", str(state)),
        *("--volume", f"kinema-workspace={workspace}"),
    )
    assert done.returncode == 0, done.stderr
    uid = planned(JOB).folder.rpartition("-")[2]
    run = next(line for line in done.stdout.splitlines() if line.startswith("run "))
    assert run.rpartition("-")[2] != uid, "another workspace is another run"
    text = done.stdout.replace(str(workspace), "/data").replace(run.rpartition("-")[2], "UID")
    assert text == GOLDEN.read_text()
    assert list(workspace.iterdir()) == []
    assert not state.exists()


def test_it_says_which_claims_have_no_folder(tmp_path: Path) -> None:
    done = kinema("run", "--local", str(job(tmp_path, dataset__uri="pvc://clips/videos")))
    assert done.returncode == Exit.USER
    assert done.stderr == (
        "kinema: the job's claims clips, kinema-workspace have no folder on this machine:"
        " add --volume clips=/folder --volume kinema-workspace=/folder\n"
    )


def test_without_local_it_names_kubectl() -> None:
    done = kinema("run", str(JOB))
    assert done.returncode == Exit.USER
    assert f"kubectl apply -f {JOB}" in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__name": "wan2.1-tinny"}, "UnknownModel"),
        ({"stages__prepare__video": {"frames": 18}}, "18 is not 4n+1"),
        ({"stages__train__enabled": False}, "later stages need train"),
        ({"stages__train__steps": 0}, "spec.stages.train.steps"),
        ({"dataset__uri": "pvc://kinema-workspace/../x"}, "may not contain '..'"),
        ({"typo": 1}, "spec.typo"),
    ],
)
def test_a_bad_job_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CommandError, match=said.replace("+", r"\+")) as raised:
        planned(job(tmp_path, **changes))
    assert raised.value.code == Exit.USER


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "is not YAML"), ("kind: Pod", "holds 0 objects"), ("", "holds 0 objects")],
)
def test_a_file_without_a_job_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(CommandError, match=said):
        jobfile.read(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"cannot read .*none\.yaml: No such file"):
        jobfile.read(tmp_path / "none.yaml")


def test_a_second_run_finds_the_first_and_another_workspace_or_name_does_not(tmp_path: Path) -> None:
    first = planned(JOB)
    assert planned(JOB).job.uid == first.job.uid
    elsewhere = planned(job(tmp_path, storage__uri="pvc://kinema-workspace/other"))
    assert elsewhere.job.uid != first.job.uid


def test_nodes_fold_to_one_and_a_step_keeps_its_clips(tmp_path: Path) -> None:
    file = job(tmp_path, defaults__nodes=2, defaults__devicesPerNode=4, stages__train__accumulate=3)
    folded = planned(file, here=machine.Machine(Accelerator.NVIDIA, 8), devices=2)
    config = folded.config(Stage.TRAIN, attempt=1, keys=KEYS)
    assert isinstance(config, TrainConfig)
    assert (config.nodes, config.devices_per_node, config.settings.accumulate) == (1, 2, 12)
    prepare = folded.config(Stage.PREPARE, attempt=1, keys=KEYS)
    assert isinstance(prepare, PrepareConfig)
    assert prepare.dataset.uri == "file:///data/demo/videos"


def test_more_devices_than_the_machine_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="asks for 8 devices of a node, this machine has 1: add --devices 1"):
        planned(job(tmp_path, defaults__devicesPerNode=8), here=machine.Machine(Accelerator.NVIDIA, 1))


def test_stages_are_chosen() -> None:
    whole = planned(JOB)
    assert course.selected(whole, only=None, first=None) == tuple(Stage)
    assert course.selected(whole, only=Stage.TRAIN, first=None) == (Stage.CHECK, Stage.TRAIN)
    assert course.selected(whole, only=Stage.CHECK, first=None) == (Stage.CHECK,)
    assert course.selected(whole, only=None, first=Stage.EXPORT) == (Stage.CHECK, Stage.EXPORT, Stage.SAMPLE)
    with pytest.raises(CommandError, match="give one of them"):
        course.selected(whole, only=Stage.TRAIN, first=Stage.TRAIN)


def test_a_stage_that_the_job_leaves_out_cannot_be_chosen(tmp_path: Path) -> None:
    short = planned(job(tmp_path, stages__sample={"enabled": False}))
    with pytest.raises(CommandError, match="--stage sample: the job leaves it out"):
        course.selected(short, only=Stage.SAMPLE, first=None)


def s3(tmp_path: Path) -> jobfile.JobFile:
    """A job whose dataset lies in a bucket."""
    return jobfile.read(job(tmp_path, dataset={"uri": "s3://data/clips", "secretRef": {"name": "minio"}}))


def test_a_secret_needs_a_folder_or_the_users_own_login(tmp_path: Path) -> None:
    spec, volumes = s3(tmp_path).spec, {"kinema-workspace": Path("/data")}
    with pytest.raises(CommandError, match="Secrets minio are not on this machine: add --secret minio=/folder"):
        places.localized(spec, volumes=volumes, secrets=(), own=("hf",))
    mine = places.localized(spec, volumes=volumes, secrets=(), own=("s3",))
    assert mine.dataset.secret_ref is None
    given = places.localized(spec, volumes=volumes, secrets=("minio",), own=())
    assert given.dataset.secret_ref is not None
    assert given.dataset.uri == "s3://data/clips"


def test_own_credentials(tmp_path: Path) -> None:
    assert places.own_credentials({}, home=tmp_path) == set()
    assert places.own_credentials({"AWS_PROFILE": "me", "HF_TOKEN": "x"}, home=tmp_path) == {"s3", "hf"}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [(["a"], "write --volume NAME=/folder"), (["a=/", "a=/"], "given twice"), (["a=/no/such"], "is no folder")],
)
def test_badly_written_folders_are_refused(pairs: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        places.folders(pairs, option="--volume")


def test_a_stage_has_the_users_environment_without_what_would_place_it_in_a_gang(tmp_path: Path) -> None:
    file = job(tmp_path, defaults__podTemplate={"env": [{"name": "MODE", "value": "quick"}]})
    base = {"HOME": "/me", "AWS_PROFILE": "me", "RANK": "3", "PET_NNODES": "2", "KUBEFLOW_TRAINER_SERVER_URL": "x"}
    found = process.environment(
        planned(file, here=machine.Machine(Accelerator.NVIDIA, 1)),
        Stage.TRAIN,
        base=base,
        termination=tmp_path / "t",
        secrets=tmp_path / "s",
        scratch=tmp_path / "x",
    )
    assert found["HOME"] == "/me" and found["AWS_PROFILE"] == "me" and found["MODE"] == "quick"
    assert found["KINEMA_ACCELERATOR"] == "nvidia"
    assert not {"RANK", "PET_NNODES", "KUBEFLOW_TRAINER_SERVER_URL"} & set(found)


def test_names_of_variables_are_those_of_the_stage() -> None:
    assert process.ENV_TERMINATION == termination.ENV_LOG
    assert process.ENV_METRICS_PORT == progress.ENV_METRICS_PORT


def test_a_log_line_tells_progress_and_warnings() -> None:
    line = {"level": "info", "step": 3, "totalSteps": 60, "etaSeconds": 190, "loss": 3.9}
    assert process.parse(json.dumps(line)) == process.Reading(done=3, total=60, loss=3.9, eta_seconds=190)
    assert process.parse('{"level": "warning", "message": "slow disk"}') == process.Reading(warning="slow disk")
    assert process.parse('{"level": "info", "message": "hello"}') is None
    assert process.parse("Traceback (most recent call last):") is None
    assert process.parse("17") is None


@pytest.mark.parametrize(
    ("code", "again"),
    [(Exit.USER, False), (Exit.DATA, False), (Exit.STORAGE, True), (Exit.INTERNAL, True), (137, True), (2, False)],
)
def test_which_exit_codes_are_tried_again(code: int, again: bool) -> None:
    assert process.retryable(code) is again
