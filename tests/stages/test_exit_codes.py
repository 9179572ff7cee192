# SPDX-License-Identifier: Apache-2.0
"""How each stage ends when something is wrong: a typed exit code, and a termination message that says what to do.

The stages are run as the command does, with their real code, over inputs that are broken for real.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinema_api.configs import stage_config
from kinema_api.exits import Exit, StageError, Termination
from kinema_api.inputs import Weights
from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.settings import ConvertSettings
from kinema_api.stage import AnyStageConfig, ConvertConfig, JobRef
from kinema_stage import logs, main, signals
from kinema_stage.context import Context
from kinema_stage.stages import check
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer.data.shards import EMPTY_TEXT

from tests.engine import Engine, make_engine
from tests.stages.features import harness
from tests.stages.features.test_sample import context as sampling
from tests.unit.stage.support import captioned, check_config, context_of, prepare_config

DOCS = Path(__file__).parents[2] / "docs" / "local.md"


@dataclass(frozen=True)
class Place:
    """A folder for a run, and toy weights."""

    root: Path
    weights: Path
    patch: pytest.MonkeyPatch

    def engine(self) -> Engine:
        """A workspace with features and converted weights."""
        return make_engine(self.root / "engine", self.weights)

    def full(self) -> None:
        """From now on no byte can be written."""

        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch.setattr(os, "fsync", fail)


Break = Callable[[Place], AnyStageConfig]


def check_without_dataset(place: Place) -> AnyStageConfig:
    return check_config(place.root)


def check_with_nothing_listed(place: Place) -> AnyStageConfig:
    (place.root / "data").mkdir()
    return check_config(place.root)


def check_with_cut_weights(place: Place) -> AnyStageConfig:
    captioned(place.root / "data" / "a.mp4")
    config = check_config(place.root)
    tensors = place.root / "weights" / "vae" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    return config


def check_where_a_file_stands(place: Place) -> AnyStageConfig:
    (place.root / "work").write_text("")
    return check_config(place.root)


def check_where_it_is_full(place: Place) -> AnyStageConfig:
    place.full()
    return check_config(place.root)


def _prepare(place: Place) -> AnyStageConfig:
    captioned(place.root / "data" / "a.mp4")
    config = check_config(place.root)
    return prepare_config(config, check.run(context_of(config)).keys["prepare"])


def prepare_of_noise(place: Place) -> AnyStageConfig:
    video = place.root / "data" / "a.mp4"
    captioned(video).write_bytes(b"noise")
    config = check_config(place.root)
    return prepare_config(config, check.run(context_of(config)).keys["prepare"])


def prepare_of_other_data(place: Place) -> AnyStageConfig:
    config = _prepare(place)
    (place.root / "data" / "a.txt").write_text("other words")
    return config


def prepare_where_it_is_full(place: Place) -> AnyStageConfig:
    config = _prepare(place)
    place.full()
    return config


def _features(place: Place) -> AnyStageConfig:
    workspace = FolderWorkspace(f"file://{place.root / 'work'}")
    harness.make_video(place.root / "videos" / "a.mp4", seed=1)
    harness.list_clips(workspace, place.root / "videos", key="prepare0")
    return harness.make_config(workspace, place.weights)


def features_of_noise(place: Place) -> AnyStageConfig:
    config = _features(place)
    (place.root / "videos" / "a.mp4").write_bytes(b"noise")
    return config


def features_without_videos(place: Place) -> AnyStageConfig:
    config = _features(place)
    shutil.rmtree(place.root / "videos")
    return config


def features_without_weights(place: Place) -> AnyStageConfig:
    config = _features(place)
    return config.model_copy(update={"weights": Weights(uri=f"file://{place.root}/nowhere")})


def features_where_it_is_full(place: Place) -> AnyStageConfig:
    config = _features(place)
    place.full()
    return config


def _convert(place: Place) -> ConvertConfig:
    engine = Engine(FolderWorkspace(f"file://{place.root / 'work'}"), place.root / "pipeline")
    shutil.copytree(place.weights, engine.weights)
    weights = Weights(uri=f"file://{engine.weights}")
    return ConvertConfig(**engine.common("run"), key="c", weights=weights, settings=ConvertSettings())


def convert_of_cut_weights(place: Place) -> AnyStageConfig:
    config = _convert(place)
    (tensors,) = (place.root / "pipeline" / "transformer").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-100])
    return config


def convert_of_another_shape(place: Place) -> AnyStageConfig:
    config = _convert(place)
    path = place.root / "pipeline" / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ffn_dim": 64}))
    return config


def convert_where_it_is_full(place: Place) -> AnyStageConfig:
    config = _convert(place)
    place.full()
    return config


def train_without_features(place: Place) -> AnyStageConfig:
    return place.engine().config().model_copy(update={"features_key": "nowhere"})


def train_without_clips(place: Place) -> AnyStageConfig:
    engine = make_engine(place.root / "engine", place.weights, samples=0)
    assert engine.workspace.exists(f"artifacts/features/{'f' * 8}/{EMPTY_TEXT}")
    return engine.config()


def export_without_checkpoint(place: Place) -> AnyStageConfig:
    return place.engine().export_config()


def _sample(place: Place) -> AnyStageConfig:
    workspace = FolderWorkspace(f"file://{place.root / 'work'}")
    harness.make_video(place.root / "videos" / "a.mp4", seed=1)
    harness.list_clips(workspace, place.root / "videos", key="prepare0")
    return sampling(workspace).config


BROKEN: dict[str, tuple[Break, Exit, str]] = {
    "check: no dataset": (
        check_without_dataset,
        Exit.USER,
        r"dataset.uri: .*data does not exist; put the videos there",
    ),
    "check: nothing in it": (check_with_nothing_listed, Exit.DATA, r"lists no videos; it needs videos"),
    "check: cut weights": (check_with_cut_weights, Exit.WEIGHTS, r"is cut off: \d+ of \d+ bytes .*download it again"),
    "check: no folder": (check_where_a_file_stands, Exit.STORAGE, r"storage.uri: .*work cannot be used: .*mend"),
    "check: full": (check_where_it_is_full, Exit.USER, r"storage.uri: .*work is full; free space or enlarge"),
    "prepare: noise": (prepare_of_noise, Exit.DATA, r"gave a clip: 1 UnreadableVideo .*mend or replace them"),
    "prepare: other data": (prepare_of_other_data, Exit.USER, r"changed after it was checked .*create the job again"),
    "prepare: full": (
        prepare_where_it_is_full,
        Exit.STORAGE,
        r"the workspace .*work is full .*; free space or enlarge",
    ),
    "features: noise": (features_of_noise, Exit.DATA, r"no clip could be read; the first"),
    "features: no videos": (features_without_videos, Exit.STORAGE, r"put it back"),
    "features: no weights": (features_without_weights, Exit.WEIGHTS, r"nowhere"),
    "features: full": (features_where_it_is_full, Exit.STORAGE, r"is full .*; free space or enlarge"),
    "convert: cut weights": (convert_of_cut_weights, Exit.WEIGHTS, r"cannot be read .*download the weights again"),
    "convert: another shape": (convert_of_another_shape, Exit.WEIGHTS, r"does not fit its config.json"),
    "convert: full": (convert_where_it_is_full, Exit.STORAGE, r"is full .*; free space or enlarge"),
    "train: no features": (train_without_features, Exit.STORAGE, r"is not complete: run the features stage first"),
    "train: no clips": (train_without_clips, Exit.DATA, r"no clips are left to train on: see what prepare"),
    "export: no checkpoint": (export_without_checkpoint, Exit.STORAGE, r"no complete checkpoint: run the train stage"),
    "sample: no export": (_sample, Exit.USER, r"no export there; enable stages.export"),
}


def ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, config: str | None = None
) -> tuple[int, Termination]:
    """Run the command in this process; its exit code, and what it left for kubelet."""
    path, log = tmp_path / "stage.json", tmp_path / "termination"
    if config is not None:
        path.write_text(config)
    monkeypatch.setenv("KINEMA_TERMINATION_LOG", str(log))
    monkeypatch.setenv("KINEMA_METRICS_PORT", "0")
    monkeypatch.setattr(logs, "set_up", lambda stage: None)
    monkeypatch.setattr(signals, "listen", lambda interrupted: None)
    with pytest.raises(SystemExit) as caught:
        main.main([stage.value, "--config", str(path)])
    assert isinstance(caught.value.code, int)
    return caught.value.code, Termination.model_validate_json(log.read_bytes())


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_ends_the_stage_with_its_code_and_a_sentence(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    breaks, wanted, sentence = BROKEN[case]
    with monkeypatch.context() as patch:
        config = breaks(Place(tmp_path, weights, patch))
        code, left = ended(tmp_path, patch, config.stage, config.model_dump_json(by_alias=True))
    assert config.stage.value == case.partition(":")[0]
    assert (code, left.code) == (wanted, wanted), left
    assert left.reason == "".join(word.capitalize() for word in wanted.name.split("_"))
    assert re.search(sentence, left.message), left.message
    assert "\n" not in left.message and "Traceback" not in left.message
    assert left.artifact is None


def test_every_stage_has_a_case() -> None:
    assert {case.partition(":")[0] for case in BROKEN} == {stage.value for stage in Stage}


FAILURES = [code for code in Exit if code is not Exit.OK]


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("wanted", FAILURES)
def test_each_code_leaves_the_process_and_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, wanted: Exit
) -> None:
    def fail(context: Context) -> Termination:
        raise StageError(wanted, f"{stage} knows why; do this")

    monkeypatch.setattr(main, "implementation", lambda stage: fail)
    code, left = ended(tmp_path, monkeypatch, stage, configs(tmp_path)[stage].model_dump_json(by_alias=True))
    assert (code, left.code, left.message) == (wanted, wanted, f"{stage} knows why; do this")
    assert 0 < code < 128


def configs(tmp_path: Path) -> dict[Stage, AnyStageConfig]:
    """A config of every stage, as the plan makes it."""
    spec = JobSpec.model_validate(
        {
            "model": {"name": "wan2.1-tiny", "weights": {"uri": f"file://{tmp_path}/weights"}},
            "dataset": {"uri": f"file://{tmp_path}/data"},
            "storage": {"uri": f"file://{tmp_path}/work"},
            "defaults": {"pool": "cpu"},
        }
    )
    pools = {"cpu": PoolSpec(accelerator=Accelerator.CPU, devices_per_node=1)}
    resolved = freeze(spec=spec, pools=pools, images={"stage": "s", "wan2.1/cpu": "w"})
    keys = Keys(prepare="p", encoder="e", features="f", convert="c")
    ref = JobRef(namespace="local", name="demo", uid="11111111-2222")
    return {
        stage: stage_config(stage=stage, spec=spec, resolved=resolved, job=ref, attempt=1, keys=keys) for stage in Stage
    }


def test_the_command_ends_so_as_a_process_of_its_own(tmp_path: Path) -> None:
    path, log = tmp_path / "stage.json", tmp_path / "termination"
    path.write_text(configs(tmp_path)[Stage.CHECK].model_dump_json(by_alias=True))
    environment = {**os.environ, "KINEMA_TERMINATION_LOG": str(log), "KINEMA_METRICS_PORT": "0"}
    command = [sys.executable, "-m", "kinema_stage.main", "check", "--config", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    left = Termination.model_validate_json(log.read_bytes())
    assert (done.returncode, left.code) == (Exit.WEIGHTS, Exit.WEIGHTS), done.stderr
    assert "there is no folder" in left.message and "correct the address" in left.message
    assert "Traceback" not in done.stderr


def test_every_code_is_documented() -> None:
    rows = [line.split("|")[1] for line in DOCS.read_text().splitlines() if re.match(r"\| \d", line)]
    documented = {int(number) for row in rows for number in re.findall(r"\d+", row)}
    assert documented >= {int(code) for code in FAILURES if code is not Exit.INTERNAL}
