# SPDX-License-Identifier: Apache-2.0
"""What a training will take, told without a device: a step is rehearsed on fake tensors, over a fake process group."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml

from kinema_api import fit
from kinema_api.buckets import Bucket, Geometry
from kinema_api.catalogue import Entry, entry
from kinema_api.exits import Exit, StageError
from kinema_api.fit import Place
from kinema_api.job import Task
from kinema_api.memory import block_parameters, end_parameters, estimate
from kinema_api.pool import Accelerator
from kinema_api.settings import ClipVideo, TrainSettings
from kinema_trainer.planning import plan
from kinema_trainer.planning.footprint import Part
from kinema_trainer.planning.plan import Request, main
from kinema_trainer.planning.rehearsal import Rehearsal, rehearse, total

CLIP = Geometry(17, 128, 256)
VIDEO = ClipVideo(frames=17, height=128, width=256)


def model(*, layers: int = 8) -> Entry:
    """Wan 2.1 with narrow blocks: what is rehearsed takes as long as the real one, block by block."""
    wan = entry("wan2.1-t2v-1.3b")
    dims = wan.transformer.model_copy(update={"hidden": 768, "ffn": 3072, "layers": layers})
    narrow = wan.model_copy(update={"transformer": dims, "text_length": 64})
    ends = 2 * 768**2 + 768 * (4096 + 256 + 6 * 768 + 2 * 64)
    parameters = layers * block_parameters(narrow) + ends
    return narrow.model_copy(update={"transformer": dims.model_copy(update={"parameters": parameters})})


def settings(layout: dict[str, Any] | None = None, **more: Any) -> TrainSettings:
    return TrainSettings.model_validate({"layout": layout or {}, **more})


def rehearsed(train: TrainSettings, *, world: int, layers: int = 8, clips: int = 1, **more: Any) -> Rehearsal:
    return rehearse(model(layers=layers), train, task=Task.T2V, clips=[CLIP] * clips, world=world, **more)


def test_states_are_those_of_the_parameters() -> None:
    found = rehearsed(settings({"shard": 1}, precision="fp32", ema={"enabled": True}), world=1, layers=4)
    size = 4 * found.parameters
    assert found.trained == found.parameters
    assert found.work[Part.PARAMETERS] == found.work[Part.AVERAGE] == size
    assert found.update[Part.GRADIENTS] == size
    assert found.update[Part.OPTIMIZER] == pytest.approx(2 * size, rel=1e-5)
    assert dist.is_initialized() is False


def test_low_rank_training_has_no_moments_of_the_weights() -> None:
    found = rehearsed(settings(lora={"enabled": True, "rank": 4}), world=2, layers=4)
    assert 0 < found.trained < found.parameters / 20
    assert found.update[Part.OPTIMIZER] == pytest.approx(8 * found.trained, rel=1e-3)


def test_blocks_that_are_inferred_are_as_those_that_are_rehearsed() -> None:
    check_inferred(settings(), world=4, layers=6)


def check_inferred(train: TrainSettings, *, world: int, layers: int) -> None:
    """Rehearse some blocks and all of them, and compare."""
    inferred, whole = (rehearsed(train, world=world, layers=layers, whole=each) for each in (False, True))
    assert inferred.parameters == whole.parameters
    assert total(inferred.peak) == pytest.approx(total(whole.peak), rel=0.01)


def test_a_thousand_processes_are_rehearsed_in_one() -> None:
    layout = {"replicate": 16, "ring": 2, "ulysses": 2, "tensor": 2, "sequence": True}
    found = rehearsed(settings(layout, recompute={"mode": "full"}), world=1024, layers=4)
    # 1024 = 16 copies x 32 parts x 2 tensor processes, which cut the blocks alone.
    whole = model(layers=4)
    cut = (2 * block_parameters(whole) + end_parameters(whole)) / 32
    # Parts are rows: of tables that have one, the first process has all.
    tables = (4 * 6 + 2) * 768
    assert found.parameters == pytest.approx(cut + tables, rel=0.002)


def test_recomputation_keeps_less() -> None:
    none = rehearsed(settings({"shard": 1}), world=1)
    full = rehearsed(settings({"shard": 1}, recompute={"mode": "full"}), world=1)
    assert full.work[Part.ACTIVATIONS] < none.work[Part.ACTIVATIONS] / 8
    assert total(full.peak) < total(none.peak)


CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], int]] = {
    "fsdp2": (8, {}, {}, 2),
    "tensor with sequence": (4, {"tensor": 4, "sequence": True}, {}, 2),
    "ring": (4, {"ring": 2, "shard": 2}, {}, 4),
}
"""Processes, layout, other settings, clips; `tests/slow` has more of them."""


@pytest.mark.parametrize("name", CASES)
def test_arithmetic_from_dimensions_is_near_the_rehearsal(name: str) -> None:
    """The operator's own arithmetic refuses nothing that fits, and lets little through that does not."""
    world, layout, more, clips = CASES[name]
    check_arithmetic(settings(layout, batchPerDevice=clips, **more), world=world, clips=clips)


def check_arithmetic(train: TrainSettings, *, world: int, clips: int) -> None:
    """Add up and rehearse, and compare."""
    found = total(rehearsed(train, world=world, clips=clips).peak)
    place = Place(world=world, accelerator=Accelerator.CPU)
    (work,) = fit.works(model(), train, VIDEO)
    sizes = fit.check(model(), train, VIDEO, place)
    told = estimate(model(), train, sizes=sizes, work=work, accelerator=Accelerator.CPU)
    assert 0.75 < told.total / found < 1.12, (told.parts(), found)


def job(tmp_path: Path, *, stages: dict[str, Any] | None = None, **train: Any) -> Path:
    documents = [
        {
            "kind": "VideoTrainingJob",
            "spec": {
                "model": {"name": "wan2.1-tiny", "weights": {"uri": "pvc://models/tiny"}},
                "dataset": {"uri": "pvc://data/videos"},
                "storage": {"uri": "pvc://work/kinema"},
                "defaults": {"pool": "gpu", "nodes": 2},
                "stages": stages or {"train": train},
            },
        },
        {"kind": "TrainingPool", "spec": {"accelerator": "nvidia", "devicesPerNode": 4}},
    ]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def test_a_job_is_planned_for_people_and_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = job(tmp_path, layout={"tensor": 2}, steps=100, ema={"enabled": True})
    assert main(["plan", str(path), "--step-seconds", "36"]) == Exit.OK
    told = capsys.readouterr().out
    assert "shard 4, tensor 2 (8 processes)" in told
    assert "1 h for 100 steps, 8 device hours" in told
    assert main(["plan", str(path), "-o", "json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert found["world"] == 8 and found["seconds"] is None
    assert found["memory_total"] == sum(found["memory"].values())
    # 2 clips of 5 x 4 x 6 tokens on each of 4 data coordinates; 8 processes share the operations.
    assert (found["samples_per_step"], found["tokens_per_step"]) == (8, 8 * 5 * 4 * 6)
    assert found["checkpoint_host"] == 16 * found["trained_parameters"]


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ({"prepare": {"video": {"height": 100}}}, "spec.stages.prepare.video.height: 100 does not divide by 16"),
        ({"train": {"packing": {"tokens": 100}}}, "a pack at most 100; raise it to 120"),
        ({"train": {"objective": {"masks": {"random": 0.8, "interpolate": 0.5}}}}, "together they are at most 1"),
    ],
)
def test_what_the_operator_refuses_is_not_planned(
    stages: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(job(tmp_path, stages=stages))]) == Exit.USER
    assert says in capsys.readouterr().err


def test_an_amount_of_memory_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(job(tmp_path)), "--device-memory", "80GB"]) == Exit.USER
    assert "--device-memory: '80GB' is not a quantity; write for instance 500m, 4 or 80Gi" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nodes", "3"], "stages.train.layout: shard 2 x tensor 5 makes 10 processes, and there are 12"),
        (["--devices-per-node", "5", "--device-memory", "1Mi", "--nodes", "1"], "do not divide by tensor 5"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert main(["plan", str(job(tmp_path, layout={"tensor": 5})), *arguments]) == Exit.USER
    told = capsys.readouterr().err
    assert says in told and "the nearest layout that works" in told
    assert time.monotonic() - began < 10


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(job(tmp_path)), "--device-memory", "1Mi"]) == Exit.USER
    assert "needs" in capsys.readouterr().err


def test_a_file_that_is_no_job_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("kind: Pod\n")
    with pytest.raises(StageError, match="neither a job nor a train stage's config"):
        plan.read(path)


def test_packs_are_planned_as_full_as_they_may_be() -> None:
    packed = settings(packing={"tokens": 1000})
    request = Request(model=model(), task=Task.T2V, settings=packed, video=VIDEO, world=1)
    # 5 x 8 x 16 tokens each.
    assert plan.largest_pass(request) == [CLIP]


def test_many_short_clips_take_more_memory_than_a_long_one() -> None:
    """Each has a caption: the pass with the most video tokens is not the one that needs most."""
    image = Bucket(frames=1, height=128, width=256)
    video = ClipVideo(buckets=[image, Bucket(frames=17, height=128, width=256)])
    packed = settings({"shard": 1}, packing={"tokens": 640})
    request = Request(model=model(layers=4), task=Task.T2V, settings=packed, video=video, world=1)
    assert plan.largest_pass(request) == [CLIP]
    found = plan.make(request)
    assert found.clips == "1 x 17x128x256 (frames x height x width)"
    assert "memory is that of a pass of 5 x 1x128x256" in found.notes
    assert found.memory_total > total(rehearsed(packed, world=1, layers=4).peak)
