# SPDX-License-Identifier: Apache-2.0
"""The layout of low-rank training where none is named: whole copies where they fit, else cut weights; it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kinema_api import fit
from kinema_api.catalogue import entry
from kinema_api.fit import Place
from kinema_api.job import JobSpec
from kinema_api.layout import Layout, Sizes
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.quantity import bytes_of
from kinema_api.settings import ClipVideo, Stages, TrainSettings
from kinema_trainer.planning import plan

pytestmark = pytest.mark.unit

LORA = {"lora": {"enabled": True}, "recompute": {"mode": "full"}}
SMALL, LARGE = "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"
CLIP = ClipVideo(frames=81, height=480, width=832)


def chosen(model: str, memory: str | None, *, world: int = 8, **train: Any) -> fit.Choice:
    place = Place(world=world, memory=None if memory is None else bytes_of(memory))
    return fit.choose(entry(model), TrainSettings.model_validate({**LORA, **train}), CLIP, place)


def test_a_whole_copy_that_fits_is_in_every_process() -> None:
    found = chosen(SMALL, "80Gi")
    assert found.train.layout == Layout(replicate=8, shard=1)
    assert "every process has a whole copy" in found.why and "of 80 GiB" in found.why


def test_what_does_not_fit_as_a_whole_is_cut() -> None:
    found = chosen(LARGE, "80Gi")
    assert found.train.layout == Layout()
    assert "weights are cut, since a copy takes" in found.why


def copies(factor: float) -> str:
    """So many times what a process with a whole copy of the small model takes."""
    model, settings = entry(SMALL), TrainSettings.model_validate(LORA)
    passes = fit.works(model, settings, CLIP)
    return str(round(factor * fit.needed(model, settings, sizes=Sizes(), passes=passes, place=Place(world=1)).total))


def test_a_copy_leaves_room_for_what_is_no_tensor() -> None:
    assert chosen(SMALL, copies(1.05)).train.layout == Layout()
    assert chosen(SMALL, copies(1.15)).train.layout == Layout(replicate=8, shard=1)


def test_without_a_known_memory_weights_are_cut() -> None:
    found = chosen(SMALL, None)
    assert found.train.layout == Layout()
    assert "it is not known what a device holds" in found.why


@pytest.mark.parametrize(
    ("world", "train"),
    [
        (8, {"layout": {"shard": 8}}),
        (8, {"layout": {"tensor": 2}}),
        (8, {"lora": {"enabled": False}}),
        (1, {}),
    ],
    ids=["named", "named in part", "no additions", "one process"],
)
def test_there_is_nothing_to_choose(world: int, train: dict[str, Any]) -> None:
    found = chosen(SMALL, "80Gi", world=world, **train)
    assert found == fit.Choice(TrainSettings.model_validate({**LORA, **train}))


def job(**train: Any) -> dict[str, Any]:
    return {
        "model": {"name": SMALL, "weights": {"uri": "pvc://models/wan"}},
        "dataset": {"uri": "pvc://data/videos"},
        "storage": {"uri": "pvc://work/kinema"},
        "defaults": {"pool": "gpu", "nodes": 2},
        "stages": {"train": {**LORA, **train}},
    }


@pytest.mark.parametrize(
    ("memory", "layout"), [("80Gi", Layout(replicate=16, shard=1)), (copies(1.05), Layout()), (None, Layout())]
)
def test_a_jobs_layout_is_chosen_when_it_is_frozen(memory: str | None, layout: Layout) -> None:
    pool = PoolSpec(accelerator=Accelerator.NVIDIA, devices_per_node=8, nodes=2, device_memory=memory)
    images = {"stage": "s", "wan2.1/nvidia": "w"}
    resolved = freeze(spec=JobSpec.model_validate(job()), pools={"gpu": pool}, images=images)
    assert Stages.stored(resolved.stages).train.layout == layout


@pytest.mark.parametrize(("memory", "says"), [("80Gi", "every process has a whole copy"), (None, "weights are cut")])
def test_the_plan_says_what_was_chosen(tmp_path: Path, memory: str | None, says: str) -> None:
    path = tmp_path / "job.yaml"
    text = "kind: VideoTrainingJob\nspec: " + JobSpec.model_validate(job()).model_dump_json(
        by_alias=True, exclude_unset=True
    )
    path.write_text(text)
    request = plan.read(path, devices_per_node=8, memory=None if memory is None else bytes_of(memory))
    assert [note for note in request.notes if says in note]
    (with_pool,) = plan.read(_with_pool(path, "80Gi"), nodes=2).notes
    assert "every process has a whole copy" in with_pool


def _with_pool(path: Path, memory: str) -> Path:
    pool = PoolSpec(accelerator=Accelerator.NVIDIA, devices_per_node=8, device_memory=memory)
    both = path.with_name("both.yaml")
    spec = pool.model_dump_json(by_alias=True, exclude_unset=True)
    both.write_text(f"{path.read_text()}\n---\nkind: TrainingPool\nspec: {spec}\n")
    return both
