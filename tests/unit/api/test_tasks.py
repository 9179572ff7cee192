# SPDX-License-Identifier: Apache-2.0
"""Tasks and objectives from a job to its keys and configs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kinema_api.catalogue import Velocity, entry, model_names
from kinema_api.configs import stage_config
from kinema_api.inputs import Dataset
from kinema_api.job import JobSpec, Task
from kinema_api.keys import Inputs, Keys, resolve
from kinema_api.names import Stage
from kinema_api.objective import PRESETS, Masks, Objective, ObjectivePreset, Recipe, ShiftKind, Weighting
from kinema_api.pipeline import settings_of
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.settings import FeaturesSettings, PrepareSettings
from kinema_api.stage import JobRef, SampleConfig, TrainConfig

pytestmark = pytest.mark.unit

IMAGES = {"stage": "s", "wan2.1/cpu": "w"}
POOLS = {"cpu": PoolSpec(accelerator=Accelerator.CPU, devices_per_node=2)}
JOB = JobRef(namespace="lab", name="wan", uid="3f2a9c1e-0000-4000-8000-000000000001")
KEYS = Keys(prepare="p", encoder="e", features="f", convert="c")


def spec(*, model: str = "wan2.1-tiny", task: str | None = None, **stages: Any) -> JobSpec:
    chosen = {"name": model, "weights": {"uri": "pvc://models/tiny"}}
    return JobSpec.model_validate(
        {
            "model": chosen | ({"task": task} if task else {}),
            "dataset": {"uri": "pvc://data/videos"},
            "storage": {"uri": "pvc://work/kinema"},
            "defaults": {"pool": "cpu"},
            "stages": stages,
        }
    )


def config(job: JobSpec, stage: Stage) -> Any:
    resolved = freeze(spec=job, pools=POOLS, images=IMAGES)
    return stage_config(stage=stage, spec=job, resolved=resolved, job=JOB, attempt=1, keys=KEYS)


def keys(task: Task, **inputs: str) -> Keys:
    return resolve(
        inputs=Inputs.model_validate({"dataset": "d", "transformer": "t", "vae": "v", "textEncoder": "x", **inputs}),
        model=entry("wan2.1-t2v-1.3b"),
        task=task,
        dataset=Dataset(uri="file:///data"),
        prepare=PrepareSettings(),
        features=FeaturesSettings(),
    )


def test_only_tasks_that_are_given_frames_have_other_features() -> None:
    base = keys(Task.T2V)
    assert keys(Task.V2V) == base
    assert keys(Task.T2V, imageEncoder="other") == base
    image, both = keys(Task.I2V, imageEncoder="clip"), keys(Task.FLF2V, imageEncoder="clip")
    assert len({base.features, image.features, both.features}) == 3
    assert keys(Task.I2V, imageEncoder="other").features != image.features
    assert image.prepare == both.prepare == base.prepare


def test_every_model_can_be_given_what_its_tasks_need() -> None:
    for name in model_names():
        model = entry(name)
        assert model.velocity is Velocity.NOISE_MINUS_DATA, "Wan's sign"
        for task in model.tasks:
            assert bool(task.images) == (model.image is not None), name
            assert model.transformer.in_channels == (36 if task.images else 16), name
        if Task.FLF2V in model.tasks:
            assert model.image is not None and model.image.positions, name
    large = entry("wan2.1-flf2v-14b-720p").image
    assert large is not None and (large.tokens, large.width, large.given) == (257, 1280, 514)


@pytest.mark.parametrize(("model", "task"), [("wan2.1-i2v-tiny", Task.I2V), ("wan2.1-flf2v-tiny", Task.FLF2V)])
def test_samples_that_begin_with_frames_are_told_where_the_videos_lie(model: str, task: Task) -> None:
    found = config(spec(model=model), Stage.SAMPLE)
    assert isinstance(found, SampleConfig)
    assert found.task is task
    assert found.dataset is not None and found.dataset.uri.endswith("data/videos")
    plain = config(spec(), Stage.SAMPLE)
    assert isinstance(plain, SampleConfig) and plain.dataset is None


def test_v2v_gives_the_leading_frames_unless_told_and_leaves_samples_out() -> None:
    stages = settings_of(spec(task="v2v"), entry("wan2.1-tiny"))
    assert stages.train.objective.masks == Masks(quarter_head=1)
    assert not stages.sample.enabled
    told = settings_of(spec(task="v2v", train={"objective": {"masks": {"random": 0.5}}}), entry("wan2.1-tiny"))
    assert told.train.objective.masks == Masks(random=0.5)
    assert not settings_of(spec(), entry("wan2.1-tiny")).train.objective.masks.shares


def test_a_job_freezes_every_number_of_its_objective() -> None:
    job = spec(train={"objective": {"preset": "mug-v", "shift": 2.0}})
    found = config(job, Stage.TRAIN)
    assert isinstance(found, TrainConfig)
    objective = found.settings.objective
    assert (objective.shift_kind, objective.shift, objective.weighting) == (ShiftKind.SIZE, 2.0, Weighting.NONE)
    assert (objective.logit_std, objective.image_weight) == (1.0, 0.3)
    assert objective.filled == objective
    assert objective.recipe == Objective(preset=ObjectivePreset.MUG_V, shift=2.0).recipe


@pytest.mark.parametrize("preset", list(ObjectivePreset))
def test_every_preset_is_an_objective_that_may_be_written_out(preset: ObjectivePreset) -> None:
    recipe = PRESETS[preset]
    written = Objective.model_validate({name: getattr(recipe, name) for name in Recipe.model_fields})
    assert written.recipe == recipe


def test_the_encoders_are_at_hand_where_training_makes_videos() -> None:
    with_videos = config(spec(train={"validation": {"samples": {"everySteps": 5}}}), Stage.TRAIN)
    without = config(spec(), Stage.TRAIN)
    assert isinstance(with_videos, TrainConfig) and isinstance(without, TrainConfig)
    assert with_videos.weights is not None and with_videos.weights.uri.endswith("models/tiny")
    assert without.weights is None


@pytest.mark.parametrize(
    "objective", [{"preset": "sora"}, {"modeScale": 1.8}, {"masks": {"head": 1}}, {"masks": {"random": 1.5}}]
)
def test_what_is_no_objective(objective: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(train={"objective": objective})
