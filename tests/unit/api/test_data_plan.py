# SPDX-License-Identifier: Apache-2.0
"""Buckets, packs and mock datasets: what a job may say of its data, and which keys follow."""

from __future__ import annotations

from typing import Any

import pytest

from kinema_api.buckets import Bucket, Geometry
from kinema_api.catalogue import entry
from kinema_api.configs import stage_config
from kinema_api.geometry import tokens
from kinema_api.inputs import Dataset
from kinema_api.job import JobSpec, Task
from kinema_api.keys import Inputs, Keys, resolve
from kinema_api.mounts import claims, staged
from kinema_api.names import Stage
from kinema_api.pipeline import settings_of
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.refusal import PlanError
from kinema_api.settings import ClipVideo, FeaturesSettings, PrepareSettings
from kinema_api.stage import JobRef, TrainConfig

pytestmark = pytest.mark.unit

POOLS = {"cpu": PoolSpec(accelerator=Accelerator.CPU, devices_per_node=2)}
IMAGES = {"stage": "s", "wan2.1/cpu": "w"}
TINY = entry("wan2.1-tiny")
LONG: dict[str, Any] = {"frames": 17, "height": 64, "width": 96, "batch": 2}
IMAGE: dict[str, Any] = {"frames": 1, "height": 64, "width": 96, "keep": 0.5, "batch": 8}


def job(*, dataset: dict[str, Any] | None = None, **stages: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"name": "wan2.1-tiny", "weights": {"uri": "pvc://models/wan"}},
            "dataset": dataset or {"uri": "pvc://data/clips"},
            "storage": {"uri": "pvc://work/kinema"},
            "defaults": {"pool": "cpu"},
            "stages": stages,
        }
    )


def buckets(*written: dict[str, Any], **video: Any) -> dict[str, Any]:
    return {"video": {"buckets": list(written), **video}}


def keys(video: dict[str, Any]) -> Keys:
    return resolve(
        inputs=Inputs(dataset="d", transformer="t", vae="v", text_encoder="x"),
        model=TINY,
        task=Task.T2V,
        dataset=Dataset(uri="pvc://data/clips"),
        prepare=PrepareSettings.model_validate({"video": video}),
        features=FeaturesSettings(),
    )


REFUSED = {
    "frames": ({"prepare": buckets({**LONG, "frames": 16})}, "InvalidVideo", "buckets[0].frames: 16 is not 4n+1"),
    "height": ({"prepare": buckets(LONG, {**IMAGE, "height": 72})}, "InvalidVideo", "buckets[1].height: 72 does not"),
    "repeated": ({"prepare": buckets(LONG, LONG)}, "InvalidVideo", "17x64x96 is that of buckets[0] too"),
    "nothing kept": ({"prepare": buckets({**LONG, "keep": 0})}, "InvalidVideo", "every keep is 0"),
    "both": ({"prepare": buckets(LONG, frames=17)}, "InvalidVideo", "buckets take the place of frames"),
    "too few tokens": (
        {"prepare": buckets(LONG, IMAGE), "train": {"packing": {"tokens": 119}}},
        "InvalidPacking",
        "a clip of 17x64x96 (frames x height x width) has 120 tokens, a pack at most 119; raise it to 120",
    ),
    "one geometry": ({"train": {"packing": {"tokens": 100}}}, "InvalidPacking", "has 120 tokens"),
    "measured and given": (
        {"train": {"packing": {"tokens": 120, "measured": True, "cost": {"quadratic": 1, "linear": 1}}}},
        "InvalidPacking",
        "cost is given; remove the one or the other",
    ),
    "batch": ({"train": {"packing": {"tokens": 120}, "batchPerDevice": 2}}, "InvalidPacking", "batchPerDevice"),
}


@pytest.mark.parametrize(("stages", "reason", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused_before_anything_is_booked(stages: dict[str, Any], reason: str, sentence: str) -> None:
    with pytest.raises(PlanError) as refused:
        freeze(spec=job(**stages), pools=POOLS, images=IMAGES)
    assert refused.value.reason == reason
    assert sentence in str(refused.value)


def test_tokens_are_those_of_the_transformer() -> None:
    assert tokens(Geometry(81, 480, 832), entry("wan2.1-t2v-1.3b")) == 32_760
    assert tokens(Geometry(1, 480, 832), entry("wan2.1-t2v-1.3b")) == 1560


def test_what_buckets_replace_is_not_shown() -> None:
    shown = {"frames", "height", "width"}
    assert not shown & ClipVideo(buckets=[Bucket(**LONG)]).wire().keys()
    assert shown < ClipVideo().wire().keys()
    again = ClipVideo(buckets=[Bucket(**LONG)], fps=8)
    assert ClipVideo.model_validate(again.wire()) == again


def test_the_train_stage_knows_the_buckets_and_samples_have_the_largest() -> None:
    spec = job(prepare=buckets(IMAGE, LONG), train={"packing": {"tokens": 120}})
    resolved = freeze(spec=spec, pools=POOLS, images=IMAGES)
    ref = JobRef(namespace="lab", name="wan", uid="u")
    known = Keys(prepare="p", encoder="e", features="f", convert="c")
    config = stage_config(stage=Stage.TRAIN, spec=spec, resolved=resolved, job=ref, attempt=1, keys=known)
    assert isinstance(config, TrainConfig)
    assert config.buckets == [Bucket(**IMAGE), Bucket(**LONG)]
    video = settings_of(spec, TINY).sample.video
    assert video is not None
    assert (video.frames, video.height, video.width) == (17, 64, 96)


def test_a_key_follows_what_decides_the_clips_and_nothing_else() -> None:
    first = keys(buckets(LONG, IMAGE)["video"])
    assert keys(buckets(IMAGE, {**LONG, "batch": 1})["video"]) == first
    assert keys(buckets(LONG, {**IMAGE, "keep": 0.4})["video"]) != first
    assert keys(buckets(LONG, IMAGE, seed=1)["video"]) != first


def test_the_key_of_one_geometry_is_that_of_earlier_releases() -> None:
    assert keys({"frames": 17, "height": 64, "width": 96, "fps": 8}).prepare == "b4eaba642f56776cef51"


def test_a_mock_has_no_address_and_mounts_nothing() -> None:
    spec = job(dataset={"format": "mock", "mock": {"clips": 12}})
    freeze(spec=spec, pools=POOLS, images=IMAGES)
    assert claims(spec) == ("models", "work")
    assert not staged(spec)


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [({"format": "mock", "uri": "pvc://data"}, "lies nowhere"), ({"format": "folder"}, "say where the videos lie")],
)
def test_only_a_mock_lies_nowhere(dataset: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        freeze(spec=job(dataset=dataset), pools=POOLS, images=IMAGES)
