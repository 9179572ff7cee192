# SPDX-License-Identifier: Apache-2.0
"""Clips of several geometries, and clips that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kinema_api.catalogue import entry
from kinema_api.inputs import Dataset, Weights
from kinema_api.job import Task
from kinema_api.names import Stage, artifact_folder
from kinema_api.stage import FeaturesConfig
from kinema_stage import artifact, clips
from kinema_stage.clips import Clip
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer.data.shards import ShardIndex
from kinema_trainer.encoding.encoders import Encoders

from tests.stages.features import harness

pytestmark = pytest.mark.unit

FOLDER = "artifacts/features/features0"
GEOMETRIES = [(9, 32, 48), (5, 48, 32), (1, 32, 48)]


def clip(number: int, *, video: str, frames: int, height: int, width: int) -> Clip:
    return Clip(
        key=f"clip{number:04d}",
        video=video,
        start_seconds=0,
        frames=frames,
        height=height,
        width=width,
        fps=8,
        caption=f"clip {number}",
    )


def listed(workspace: FolderWorkspace, *, video: str = "v.mp4", count: int = 6) -> list[Clip]:
    """A published list of clips of every geometry."""
    found = []
    for number in range(count):
        frames, height, width = GEOMETRIES[number % 3]
        found.append(clip(number, video=video, frames=frames, height=height, width=width))
    folder = artifact_folder(Stage.PREPARE, "prepare0")
    clips.write(workspace, folder, clips=found, quarantined=[])
    artifact.publish(workspace, folder, artifact.Manifest(stage=Stage.PREPARE, key="prepare0", job="t/t"))
    return found


def latents(clip: Clip) -> tuple[int, int, int, int]:
    return 16, (clip.frames - 1) // 4 + 1, clip.height // 8, clip.width // 8


def mock_config(workspace: FolderWorkspace, task: Task = Task.T2V, model: str = "wan2.1-tiny") -> FeaturesConfig:
    config = harness.make_config(workspace, Path("/nowhere"), task=task)
    dataset = Dataset.model_validate({"format": "mock"})
    weights = Weights(uri="file:///nowhere")
    return config.model_copy(update={"dataset": dataset, "weights": weights, "model": entry(model)})


def test_each_clip_is_encoded_in_its_own_geometry(tmp_path: Path, weights: Path) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path / 'workspace'}")
    harness.make_video(tmp_path / "videos" / "v.mp4", seed=1, frames=10)
    found = listed(workspace)
    end = harness.run(harness.make_config(workspace, weights))
    assert end.counts["encoded"] == 6
    index = ShardIndex.open(workspace.local(FOLDER))
    assert index.shapes == [latents(clip) for clip in found]
    assert [tuple(sample.latents.shape) for sample in index] == index.shapes
    assert [sample.meta["frames"] for sample in index] == [clip.frames for clip in found]


def read(workspace: FolderWorkspace) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(sample.latents, sample.text) for sample in ShardIndex.open(workspace.local(FOLDER))]


def test_a_mock_has_random_features_of_the_right_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoders, "__init__", None)
    first = FolderWorkspace(f"file://{tmp_path / 'first'}")
    found = listed(first, video="mock-00000001", count=9)
    harness.run(mock_config(first))
    index = ShardIndex.open(first.local(FOLDER))
    assert index.shapes == [latents(clip) for clip in found]
    samples = read(first)
    assert len({tuple(tensor.flatten()[:4].tolist()) for tensor, _ in samples}) == 9
    assert all(1 <= len(text) <= 64 and text.shape[1] == 32 for _, text in samples)
    assert len({len(text) for _, text in samples}) > 2
    values = torch.cat([tensor.flatten() for tensor, _ in samples])
    assert abs(float(values.mean())) < 0.1
    assert abs(float(values.std()) - 1) < 0.1

    again = FolderWorkspace(f"file://{tmp_path / 'again'}")
    listed(again, video="mock-00000001", count=9)
    harness.run(mock_config(again), worker=0)
    for one, other in zip(samples, read(again), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    ("task", "model", "tokens"), [(Task.I2V, "wan2.1-i2v-tiny", 1), (Task.FLF2V, "wan2.1-flf2v-tiny", 2)]
)
def test_a_mock_is_given_frames_too(tmp_path: Path, task: Task, model: str, tokens: int) -> None:
    workspace = FolderWorkspace(f"file://{tmp_path / 'workspace'}")
    found = listed(workspace, video="mock-00000001", count=3)
    harness.run(mock_config(workspace, task, model))
    spec = entry(model)
    assert spec.image is not None
    for clip, sample in zip(found, ShardIndex.open(workspace.local(FOLDER)), strict=True):
        assert sample.condition is not None
        assert sample.condition.shape == sample.latents.shape
        # Of an image every frame is given; a longer clip is more than its first and last.
        assert torch.equal(sample.condition, sample.latents) == (clip.frames == 1)
        assert sample.image is not None
        assert sample.image.shape == (tokens * spec.image.tokens, spec.image.width)
