# SPDX-License-Identifier: Apache-2.0
"""From a job to its settings, keys and stage configs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from kinema_api.catalogue import UnknownModelError, entry, families, model_names
from kinema_api.configs import stage_config
from kinema_api.exits import Exit, Termination
from kinema_api.inputs import Dataset, SecretRef, Storage, Weights
from kinema_api.job import JobSpec, Task
from kinema_api.keys import Inputs, Keys, resolve
from kinema_api.locations import Claim, claim_of, in_container, join
from kinema_api.mounts import claims, locations, secrets, staged
from kinema_api.names import TERMINATION_LIMIT, Stage, child_name, run_folder
from kinema_api.pipeline import merge, pipeline, pool_of, settings_of
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.progress import ProgressPost
from kinema_api.refusal import PlanError
from kinema_api.schedule import Schedule
from kinema_api.settings import FeaturesSettings, PrepareSettings, Stages
from kinema_api.stage import (
    CheckConfig,
    ConvertConfig,
    ExportConfig,
    FeaturesConfig,
    JobRef,
    PrepareConfig,
    SampleConfig,
    StageConfig,
    TrainConfig,
    TrainingPlace,
    artifact_of,
    load_config,
)

pytestmark = pytest.mark.unit

IMAGES = {"stage": "s", "wan2.1/cpu": "w"}
POOLS = {"cpu": PoolSpec(accelerator=Accelerator.CPU, devices_per_node=2)}
JOB = JobRef(namespace="lab", name="wan", uid="3f2a9c1e-0000-4000-8000-000000000001")
KEYS = Keys(prepare="p", encoder="e", features="f", convert="c")


def spec(**parts: Any) -> JobSpec:
    """A small job, with parts of its spec replaced."""
    return JobSpec.model_validate(
        {
            "model": {"name": "wan2.1-tiny", "weights": {"uri": "pvc://models/tiny"}},
            "dataset": {"uri": "pvc://data/videos"},
            "storage": {"uri": "pvc://work/kinema"},
            "defaults": {"pool": "cpu"},
            **parts,
        }
    )


def test_what_the_user_wrote_wins_over_the_family_and_the_family_over_the_built_in() -> None:
    job = spec(stages={"prepare": {"video": {"frames": 33}}})
    stages = settings_of(job, entry("wan2.1-tiny"))
    family = entry("wan2.1-tiny").defaults["prepare"]["video"]
    assert stages.prepare.video.frames == 33
    assert stages.prepare.video.height == family["height"] != PrepareSettings().video.height
    assert stages.train.objective.shift == 2.5


def test_samples_have_the_geometry_of_the_clips_unless_told() -> None:
    stages = settings_of(spec(stages={"prepare": {"video": {"frames": 33}}}), entry("wan2.1-tiny"))
    assert stages.sample.video is not None
    assert stages.sample.video.model_dump() == stages.prepare.video.model_dump(exclude={"buckets", "seed"})


def test_a_short_run_has_a_short_warm_up_unless_told() -> None:
    short = settings_of(spec(stages={"train": {"steps": 50}}), entry("wan2.1-t2v-1.3b"))
    assert short.train.schedule.warmup_steps == 5
    odd = settings_of(spec(stages={"train": {"steps": 57}}), entry("wan2.1-t2v-1.3b"))
    assert repr(odd.train.schedule.warmup_steps) == "5"
    told = settings_of(spec(stages={"train": {"steps": 50, "schedule": {"warmupSteps": 20}}}), entry("wan2.1-tiny"))
    assert told.train.schedule.warmup_steps == 20


def test_merge_goes_into_mappings_and_replaces_lists() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": [1, 2]}, {"a": {"c": 3}, "d": [4]}) == {"a": {"b": 1, "c": 3}, "d": [4]}


def test_the_warm_up_is_short_only_where_the_run_is() -> None:
    long = settings_of(spec(stages={"train": {"steps": 20_000}}), entry("wan2.1-t2v-1.3b"))
    assert long.train.schedule.warmup_steps == Schedule().warmup_steps
    freeze(spec=spec(stages={"train": {"steps": 11, "schedule": {"warmupSteps": 10}}}), pools=POOLS, images=IMAGES)


def test_nodes_and_devices_are_those_of_the_stage_before_the_defaults_before_the_pool() -> None:
    defaults = {"pool": "cpu", "nodes": 2, "devicesPerNode": 1}
    pools = {"cpu": PoolSpec(accelerator=Accelerator.CPU, devices_per_node=4, nodes=3)}

    def frozen(**parts: Any) -> tuple[Any, Any]:
        train = freeze(spec=spec(**parts), pools=pools, images=IMAGES).stages["train"]
        return train["nodes"], train["devicesPerNode"]

    assert frozen() == (1, 4)
    assert frozen(defaults=defaults) == (2, 1)
    assert frozen(defaults=defaults, stages={"train": {"nodes": 3, "devicesPerNode": 4}}) == (3, 4)


def test_a_stage_runs_on_its_own_pool_or_the_default_one() -> None:
    pools = {**POOLS, "gpu": PoolSpec(accelerator=Accelerator.NVIDIA, devices_per_node=8), "unused": POOLS["cpu"]}
    images = {**IMAGES, "wan2.1/nvidia": "n", "unused": "u"}
    job = spec(stages={"train": {"pool": "gpu"}, "check": {"pool": "gpu"}, "sample": {"enabled": False}})
    resolved = freeze(spec=job, pools=pools, images=images)
    stages = Stages.stored(resolved.stages)
    assert {stage.value: pool_of(job, stages, stage) for stage in pipeline(stages)} == {
        "check": "gpu", "prepare": None, "features": "cpu", "convert": "cpu", "train": "gpu", "export": "cpu"
    }  # fmt: skip
    assert resolved.images == {
        "check": "s", "prepare": "s", "features": "w", "convert": "w", "train": "n", "export": "w"
    }  # fmt: skip
    assert resolved.pools == {"gpu": pools["gpu"].wire(), "cpu": pools["cpu"].wire()}
    assert resolved.model == entry("wan2.1-tiny").wire()
    assert stages.train.devices_per_node == 8
    assert (resolved.keys, resolved.pins) == ({}, {})


def test_without_any_pool_the_administrator_is_asked_for_one() -> None:
    with pytest.raises(PlanError) as refused:
        freeze(spec=spec(), pools={}, images=IMAGES)
    assert str(refused.value) == (
        "stage features: there is no TrainingPool cpu; this cluster has none: let the administrator create it"
    )
    with pytest.raises(PlanError) as refused:
        freeze(spec=spec(), pools={"b": POOLS["cpu"], "a": POOLS["cpu"]}, images=IMAGES)
    assert "this cluster has a, b: name one of them, or let" in str(refused.value)


def test_an_optional_stage_is_left_out_with_its_geometry() -> None:
    odd = {"frames": 8, "height": 60, "width": 90}
    stages = {"export": {"enabled": False}, "sample": {"enabled": False, "video": odd}}
    resolved = freeze(spec=spec(stages=stages), pools=POOLS, images=IMAGES)
    assert [stage.value for stage in pipeline(Stages.stored(resolved.stages))] == [
        "check", "prepare", "features", "convert", "train"
    ]  # fmt: skip


REACHED = {
    "model": {
        "name": "wan2.1-tiny",
        "weights": {"uri": "hf://Wan-AI/tiny", "revision": "main", "secretRef": {"name": "hub"}},
    },
    "dataset": {"uri": "s3://videos/all", "secretRef": {"name": "bucket"}, "endpoint": "https://s3.example.com"},
    "storage": {"uri": "pvc://work/kinema", "secretRef": {"name": "bucket"}},
    "defaults": {"pool": "cpu", "nodes": 2},
    "stages": {"train": {"ema": {"enabled": False}}},
}


def test_what_pods_mount_is_found() -> None:
    reached = spec(**REACHED)
    assert locations(reached) == (reached.dataset, reached.model.weights, reached.storage)
    assert (claims(reached), secrets(reached), staged(reached)) == (("work",), ("bucket", "hub"), True)
    assert (claims(spec()), secrets(spec()), staged(spec())) == (("data", "models", "work"), (), False)


def configs() -> dict[Stage, tuple[StageConfig, StageConfig]]:
    """What each stage is told about a job, and what it must be told."""
    job = spec(**REACHED)
    resolved = freeze(spec=job, pools=POOLS, images=IMAGES).model_copy(update={"pins": {"weights": "0f1e"}})
    stages = Stages.stored(resolved.stages)
    weights = Weights(uri="hf://Wan-AI/tiny", revision="0f1e", secret_ref=SecretRef(name="hub"))
    dataset = job.dataset
    common: dict[str, Any] = {
        "job": JOB,
        "attempt": 3,
        "workspace": Storage(uri="file:///kinema/volumes/work/kinema", secret_ref=SecretRef(name="bucket")),
        "model": entry("wan2.1-tiny"),
        "task": Task.T2V,
    }
    wanted: dict[Stage, StageConfig] = {
        Stage.CHECK: CheckConfig(
            **common,
            dataset=dataset,
            weights=weights,
            prepare=stages.prepare,
            features=stages.features,
            train=stages.train,
            place=TrainingPlace(world=4, accelerator=Accelerator.CPU, name="a device of pool cpu"),
        ),
        Stage.PREPARE: PrepareConfig(**common, key="p", dataset=dataset, settings=stages.prepare),
        Stage.FEATURES: FeaturesConfig(
            **common,
            key="f",
            dataset=dataset,
            prepare_key="p",
            encoder_key="e",
            weights=weights,
            settings=stages.features,
        ),
        Stage.CONVERT: ConvertConfig(**common, key="c", weights=weights, settings=stages.convert),
        Stage.TRAIN: TrainConfig(
            **common,
            features_key="f",
            convert_key="c",
            nodes=2,
            devices_per_node=2,
            settings=stages.train,
            video=stages.prepare.video,
        ),
        Stage.EXPORT: ExportConfig(**common, weights=weights, ema=False, settings=stages.export),
        Stage.SAMPLE: SampleConfig(**common, prepare_key="p", settings=stages.sample),
    }
    made = {
        stage: stage_config(stage=stage, spec=job, resolved=resolved, job=JOB, attempt=3, keys=KEYS) for stage in Stage
    }
    return {stage: (made[stage], wanted[stage]) for stage in Stage}


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_is_told_what_it_needs(stage: Stage) -> None:
    made, wanted = configs()[stage]
    assert made == wanted


def test_a_config_falls_back_where_an_older_operator_froze_less() -> None:
    job = spec(model={"name": "wan2.1-tiny", "task": "t2v", "weights": {"uri": "pvc://m/x", "revision": "v1"}})
    resolved = freeze(spec=job, pools=POOLS, images=IMAGES)
    train = {name: value for name, value in resolved.stages["train"].items() if name not in ("nodes", "devicesPerNode")}
    older = resolved.model_copy(update={"stages": {**resolved.stages, "train": train}})
    config = stage_config(stage=Stage.TRAIN, spec=job, resolved=older, job=JOB, attempt=1, keys=KEYS)
    assert isinstance(config, TrainConfig) and (config.nodes, config.devices_per_node) == (1, 1)
    check = stage_config(stage=Stage.CHECK, spec=job, resolved=resolved, job=JOB, attempt=1, keys=None)
    assert isinstance(check, CheckConfig)
    assert check.weights == Weights(uri="file:///kinema/volumes/m/x", revision="v1")


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_config_survives_the_wire(stage: Stage) -> None:
    job = spec()
    resolved = freeze(spec=job, pools=POOLS, images=IMAGES)
    config = stage_config(stage=stage, spec=job, resolved=resolved, job=JOB, attempt=1, keys=KEYS)
    assert load_config(config.model_dump_json(by_alias=True, exclude_none=True)) == config
    assert config.workspace.uri == "file:///kinema/volumes/work/kinema"
    assert artifact_of(config).startswith(("artifacts/", "jobs/lab/wan-3f2a9c1e"))


def test_a_stage_reads_the_config_of_a_newer_operator() -> None:
    job = spec()
    resolved = freeze(spec=job, pools=POOLS, images=IMAGES)
    config = stage_config(stage=Stage.TRAIN, spec=job, resolved=resolved, job=JOB, attempt=1, keys=KEYS)
    newer = json.loads(config.model_dump_json(by_alias=True))
    newer["novelty"] = newer["settings"]["novelty"] = 1
    assert load_config(json.dumps(newer)) == config


def test_only_check_runs_without_keys() -> None:
    job = spec()
    resolved = freeze(spec=job, pools=POOLS, images=IMAGES)
    with pytest.raises(ValueError, match=r"^stage train needs the keys that check resolves$"):
        stage_config(stage=Stage.TRAIN, spec=job, resolved=resolved, job=JOB, attempt=1, keys=None)


def test_a_stage_on_a_pool_without_image_is_refused() -> None:
    with pytest.raises(PlanError) as raised:
        freeze(spec=spec(), pools=POOLS, images={"stage": "s"})
    assert raised.value.reason == "NoImage"
    assert str(raised.value) == (
        "stage features: the operator was given no image for wan2.1/cpu; set images in the chart's values"
    )


def test_more_nodes_than_the_pool_has_are_refused() -> None:
    pools = {"cpu": PoolSpec(accelerator=Accelerator.CPU, devices_per_node=1, nodes=1)}
    with pytest.raises(PlanError, match="nodes: 2, but pool cpu has 1"):
        freeze(spec=spec(defaults={"pool": "cpu", "nodes": 2}), pools=pools, images=IMAGES)


def test_an_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(UnknownModelError, match=r"did you mean wan2\.1-t2v-14b"):
        entry("wan2.1-t2v-15b")


def test_the_catalogue_holds_wan_at_its_real_dimensions() -> None:
    large = entry("wan2.1-t2v-14b").transformer
    assert (large.hidden, large.heads, large.layers, large.ffn) == (5120, 40, 40, 13824)
    small = entry("wan2.1-t2v-1.3b").transformer
    assert (small.hidden, small.heads, small.layers, small.ffn) == (1536, 12, 30, 8960)
    assert entry("wan2.1-i2v-14b-720p").transformer.in_channels == 36
    assert entry("wan2.1-t2v-1.3b").stride == 16


def test_every_entry_of_the_catalogue_gives_valid_settings() -> None:
    for name in model_names():
        model = entry(name)
        stages = settings_of(spec(model={"name": name, "weights": {"uri": "pvc://m/x"}}), model)
        assert (stages.prepare.video.frames - 1) % model.vae.temporal == 0, name
        assert stages.prepare.video.height % model.stride == stages.prepare.video.width % model.stride == 0, name
    assert [family.family for family in families()] == ["wan2.1"]


INPUTS = Inputs(dataset="d", transformer="t", vae="v", text_encoder="x")


def keys(**change: Any) -> Keys:
    parts: dict[str, Any] = {
        "inputs": INPUTS,
        "model": entry("wan2.1-t2v-1.3b"),
        "task": Task.T2V,
        "dataset": Dataset(uri="file:///data"),
        "prepare": PrepareSettings(),
        "features": FeaturesSettings(),
        **change,
    }
    return resolve(**parts)


def test_keys_stay_what_they_were() -> None:
    """A change here makes every workspace encode again: raise a format number only for a reason."""
    assert keys() == Keys(
        prepare="5bf757a513bdabb8b2a5",
        encoder="e977c46487e3311d246a",
        features="69afb1f73aa0ea7eaa77",
        convert="df7c45cee2d81b0ea167",
    )


def test_keys_follow_what_decides_the_content() -> None:
    base = keys()
    other_data = keys(inputs=INPUTS.model_copy(update={"dataset": "other"}))
    assert (other_data.prepare, other_data.features) != (base.prepare, base.features)
    assert (other_data.encoder, other_data.convert) == (base.encoder, base.convert)
    other_vae = keys(inputs=INPUTS.model_copy(update={"vae": "other"}))
    assert other_vae.prepare == base.prepare and other_vae.features != base.features
    more_workers = keys(features=FeaturesSettings(workers=8, retries=1))
    assert more_workers == base, "how the work is spread does not change its result"
    moved = keys(dataset=Dataset(uri="file:///elsewhere"))
    assert moved == base, "where the data lies does not change it"


def test_claims_are_found_and_mounted() -> None:
    assert claims(spec()) == ("data", "models", "work")
    assert claim_of("pvc://data/videos/") == Claim("data", "videos")
    assert claim_of("file:///x") is None
    assert in_container("pvc://data") == "file:///kinema/volumes/data"
    assert in_container("pvc://data/a/b") == "file:///kinema/volumes/data/a/b"
    assert join("pvc://data/", "/a/", "b") == "pvc://data/a/b"
    with pytest.raises(ValueError, match="write pvc://CLAIM/PATH"):
        claim_of("pvc:///path")


def test_the_longest_job_still_makes_valid_pod_names() -> None:
    longest = max(len(f"{child_name(job='j' * 36, stage=stage, attempt=101)}-worker-99") for stage in Stage)
    assert longest <= 63
    assert run_folder(namespace="lab", name="wan", uid="3f2a9c1e-0000") == "jobs/lab/wan-3f2a9c1e"


@pytest.mark.parametrize("message", ["x" * 10_000, "\u65e5" * 10_000, '"' * 10_000])
def test_a_termination_message_always_fits_and_reads_back(message: str) -> None:
    data = Termination(code=Exit.DATA, reason="DataError", message=message).encode()
    assert len(data) <= TERMINATION_LIMIT
    assert Termination.model_validate_json(data).code == Exit.DATA


def test_exit_codes_say_whether_a_retry_helps() -> None:
    assert [code for code in Exit if code.retryable] == [
        Exit.INTERNAL,
        Exit.STORAGE,
        Exit.COMMUNICATION,
        Exit.STALLED,
        Exit.HOST_OUT_OF_MEMORY,
        Exit.INTERRUPTED,
    ]
    assert all(code < 128 for code in Exit)


def test_progress_takes_kubeflows_body_and_ignores_what_it_does_not_know() -> None:
    post = ProgressPost.model_validate(
        {"trainerStatus": {"progressPercentage": 42, "metrics": [{"name": "loss", "value": "0.5"}], "new": 1}, "x": 2}
    )
    assert post.trainer_status.metric("loss") == "0.5"
    with pytest.raises(ValidationError):
        ProgressPost.model_validate({"trainerStatus": {"progressPercentage": 101}})


def test_quantities_may_be_written_as_numbers() -> None:
    job = spec(stages={"train": {"resources": {"cpu": 4, "memory": "16Gi"}}})
    assert job.stages.train.resources == {"cpu": "4", "memory": "16Gi"}
