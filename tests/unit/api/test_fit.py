# SPDX-License-Identifier: Apache-2.0
"""Layouts and models that cannot work: the reason, and what is nearest that can; within moments, without any data."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kinema_api import fit, plan, refusal
from kinema_api.buckets import Bucket
from kinema_api.catalogue import Entry, entry
from kinema_api.exits import Exit, StageError
from kinema_api.fit import FitError, Place
from kinema_api.inputs import Dataset, Storage, Weights
from kinema_api.job import JobSpec, Task
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.quantity import bytes_of
from kinema_api.refusal import PlanError
from kinema_api.settings import ClipVideo, FeaturesSettings, PrepareSettings, TrainSettings
from kinema_api.stage import CheckConfig, JobRef, TrainingPlace
from kinema_operator.conditions import REASONS
from kinema_stage.context import make_context
from kinema_stage.stages import check

pytestmark = pytest.mark.unit

SECONDS = 10.0
HD, SD = ClipVideo(frames=81, height=720, width=1280), ClipVideo(frames=81, height=480, width=832)
LARGE = Bucket(frames=81, height=480, width=832, batch=32)
FULL = {"recompute": {"mode": "full"}}

REFUSED: dict[str, tuple[str, dict[str, Any], int, ClipVideo, str | None, str, str]] = {
    "axes that do not fill the processes": (
        "wan2.1-t2v-14b", {"layout": {"shard": 3}}, 8, SD, None, "InvalidLayout",
        "stages.train.layout: shard 3 makes 3 processes, and there are 8; the nearest layout that works: replicate 2,"
        " shard 4",
    ),
    "axes that do not divide the processes": (
        "wan2.1-t2v-14b", {"layout": {"tensor": 4, "ulysses": 4}}, 8, SD, None, "InvalidLayout",
        "stages.train.layout: shard 1 x ulysses 4 x tensor 4 makes 16 processes, and there are 8; the nearest layout"
        " that works: shard 1, ulysses 2, tensor 4",
    ),
    "more Ulysses processes than heads": (
        "wan2.1-t2v-1.3b", {"layout": {"ulysses": 16}}, 16, SD, None, "InvalidLayout",
        "stages.train.layout: ulysses 16 is more than 12 attention heads, and every process needs one; the nearest"
        " layout that works: shard 4, ulysses 4",
    ),
    "heads that Ulysses does not divide": (
        "wan2.1-t2v-1.3b", {"layout": {"ulysses": 8}}, 8, SD, None, "InvalidLayout",
        "stages.train.layout: 12 attention heads do not divide by tensor 1 x ulysses 8; the nearest layout that works:"
        " shard 2, ulysses 4",
    ),
    "heads that tensor does not divide": (
        "wan2.1-t2v-1.3b", {"layout": {"tensor": 8}}, 8, SD, None, "InvalidLayout",
        "stages.train.layout: 12 attention heads do not divide by tensor 8; the nearest layout that works: shard 2,"
        " tensor 4",
    ),
    "heads that both together do not divide": (
        "wan2.1-t2v-1.3b", {"layout": {"tensor": 4, "ulysses": 2}}, 8, SD, None, "InvalidLayout",
        "stages.train.layout: 12 attention heads do not divide by tensor 4 x ulysses 2; the nearest layout that works:"
        " shard 2, tensor 4",
    ),
    "nothing is left to shard over": (
        "wan2.1-t2v-14b", {"layout": {"replicate": 8}}, 8, SD, None, "InvalidLayout",
        "stages.train.layout: replicate 8 leaves a shard axis of 1, so nothing would be cut (write shard: 1 if every"
        " process is to have a whole copy); the nearest layout that works: replicate 4, shard 2",
    ),
    "sequence without tensor": (
        "wan2.1-t2v-14b", {"layout": {"sequence": True}}, 8, SD, None, "InvalidLayout",
        "stages.train.layout: sequence cuts tokens over the tensor processes, and tensor is 1; the nearest layout that"
        " works: shard 8",
    ),
    "another layout fits": (
        "wan2.1-t2v-14b", {"layout": {"shard": 1, "replicate": 8}, **FULL}, 8, SD, "80Gi", "DoesNotFit",
        "the nearest layout that works: replicate 2, shard 4",
    ),
    "only recomputation fits": (
        "wan2.1-t2v-1.3b", {}, 8, SD, "40Gi", "DoesNotFit",
        "with recompute.mode: full the nearest that works is shard 8",
    ),
    "nothing fits": (
        "wan2.1-t2v-14b", FULL, 1, SD, "80Gi", "DoesNotFit",
        "no layout of 1 processes holds it: spread it over more devices, or train smaller clips",
    ),
    "packs that are too full": (
        "wan2.1-t2v-1.3b", {"packing": {"tokens": 1_000_000}, **FULL}, 8, SD, "40Gi", "DoesNotFit",
        "stages.train.layout: shard 8 needs ",
    ),
    "a bucket that is too large": (
        "wan2.1-t2v-1.3b", FULL, 8,
        ClipVideo(buckets=[Bucket(frames=1, height=256, width=256), LARGE]),
        "40Gi", "DoesNotFit", "stages.train.layout: shard 8 needs ",
    ),
}  # fmt: skip


def refused(name: str) -> tuple[Entry, TrainSettings, ClipVideo, Place, str, str]:
    model, train, world, video, memory, reason, says = REFUSED[name]
    size = None if memory is None else bytes_of(memory)
    place = Place(world=world, memory=size, name="a device of pool gpu")
    return entry(model), TrainSettings.model_validate(train), video, place, reason, says


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_the_nearest_that_can(name: str) -> None:
    model, train, video, place, reason, says = refused(name)
    began = time.monotonic()
    with pytest.raises(FitError) as caught:
        fit.check(model, train, video, place)
    assert caught.value.reason == reason and says in str(caught.value)
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("name", REFUSED)
def test_the_operator_refuses_it_before_there_is_a_pod(name: str) -> None:
    model, train, world, video, memory, reason, says = REFUSED[name]
    pool = PoolSpec(accelerator=Accelerator.NVIDIA, devices_per_node=world, device_memory=memory)
    spec = JobSpec.model_validate(
        {
            "model": {"name": model, "weights": {"uri": "pvc://models/wan"}},
            "dataset": {"uri": "pvc://data/videos"},
            "storage": {"uri": "pvc://work/kinema"},
            "defaults": {"pool": "gpu"},
            "stages": {
                "prepare": {"video": video.model_dump(by_alias=True, exclude_unset=True)},
                "train": {"recompute": {"mode": "none"}, **train},
            },
        }
    )
    with pytest.raises(PlanError) as caught:
        freeze(spec=spec, pools={"gpu": pool}, images={"stage": "s", "wan2.1/nvidia": "w"})
    assert caught.value.reason == reason
    assert str(caught.value).startswith("spec.stages.train.layout: ") and says in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_the_check_stage_refuses_it_before_it_looks_at_any_data(name: str, tmp_path: Path) -> None:
    model, train, video, place, _, says = refused(name)
    config = CheckConfig(
        job=JobRef(namespace="local", name="wan", uid="0123456789"),
        workspace=Storage(uri=f"file://{tmp_path}/nowhere"),
        model=model,
        task=Task.T2V,
        dataset=Dataset(uri=f"file://{tmp_path}/no-videos"),
        weights=Weights(uri=f"file://{tmp_path}/no-weights"),
        prepare=PrepareSettings(video=video),
        features=FeaturesSettings(),
        train=train,
        place=TrainingPlace(world=place.world, accelerator=place.accelerator, memory=place.memory, name=place.name),
    )
    began = time.monotonic()
    with pytest.raises(StageError) as caught:
        check.run(make_context(config, interrupted=threading.Event(), environment={"KINEMA_METRICS_PORT": "0"}))
    assert caught.value.code == Exit.USER and says in str(caught.value)
    assert time.monotonic() - began < SECONDS
    assert list(tmp_path.iterdir()) == []


def test_what_fits_is_let_through_in_the_layout_that_was_asked_for() -> None:
    train = TrainSettings.model_validate({"layout": {"ulysses": 4}, **FULL})
    sizes = fit.check(entry("wan2.1-t2v-14b"), train, HD, Place(world=64, memory=bytes_of("80Gi")))
    assert (sizes.shard, sizes.ulysses, sizes.world) == (16, 4, 64)


def test_nobody_is_refused_for_memory_that_nobody_knows() -> None:
    assert fit.check(entry("wan2.1-t2v-14b"), TrainSettings(), HD, Place(world=1)).world == 1


def test_a_thousand_processes_are_answered_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(FitError, match="nearest layout that works"):
        fit.check(entry("wan2.1-t2v-14b"), TrainSettings(), HD, Place(world=6400, memory=bytes_of("32Gi")))
    assert time.monotonic() - began < SECONDS


def test_every_reason_of_a_refusal_is_documented() -> None:
    """Each is written out where it is raised."""
    sources = [Path(str(module.__file__)).read_text() for module in (fit, plan, refusal)]
    reasons = {name for text in sources for name in re.findall(r'(?:Plan|Fit)Error\(\s*"(\w+)"', text)}
    assert {"InvalidLayout", "InvalidAttention", "SampleNotSupported"} <= reasons
    assert reasons <= set(REASONS)


def test_a_thousand_processes_and_many_buckets_are_answered_at_once() -> None:
    buckets = [Bucket(frames=17 + 4 * number, height=480, width=832, batch=64 - number) for number in range(64)]
    began = time.monotonic()
    with pytest.raises(FitError, match="no layout of 6400 processes holds it"):
        fit.check(
            entry("wan2.1-t2v-14b"),
            TrainSettings(),
            ClipVideo(buckets=buckets),
            Place(world=6400, memory=bytes_of("1Gi")),
        )
    assert time.monotonic() - began < SECONDS
