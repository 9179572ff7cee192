# SPDX-License-Identifier: Apache-2.0
"""The sample stage: one mp4 for each prompt and seed, as the exported pipeline generates it."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline

from kinema_api.catalogue import entry
from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Dataset, Storage
from kinema_api.job import Task
from kinema_api.names import Stage
from kinema_api.settings import SampleSettings
from kinema_api.stage import JobRef, SampleConfig
from kinema_stage import artifact
from kinema_stage.clips import read as read_clips
from kinema_stage.context import Context, make_context
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer import tiny
from kinema_trainer.stages import sample

from tests.stages.features import harness

RUN = "jobs/t/job-uid-1"
FOLDER = f"{RUN}/samples"


@pytest.fixture
def workspace(tmp_path: Path, weights: Path) -> FolderWorkspace:
    """A workspace with an export and a list of clips."""
    made = FolderWorkspace(f"file://{tmp_path / 'workspace'}")
    shutil.copytree(weights, made.local(f"{RUN}/export"))
    artifact.publish(made, f"{RUN}/export", artifact.Manifest(stage=Stage.EXPORT, key="uid-1", job="t/job"))
    for number in range(6):
        harness.make_video(tmp_path / "videos" / f"v{number}.mp4", seed=number, frames=10)
    harness.list_clips(made, tmp_path / "videos", key="prepare0")
    return made


def context(workspace: FolderWorkspace, *, interrupted: threading.Event | None = None, **settings: Any) -> Context:
    values = {"prompts": ["a rabbit", "a bird"], "seeds": [3], "steps": 2, "guidance": 1.0, "fps": 8}
    config = SampleConfig(
        job=JobRef(namespace="t", name="job", uid="uid-1"),
        workspace=Storage(uri=workspace.uri()),
        model=entry("wan2.1-tiny"),
        task=Task.T2V,
        prepare_key="prepare0",
        settings=SampleSettings.model_validate({**values, "video": harness.GEOMETRY, **settings}),
    )
    return make_context(config, interrupted=interrupted or threading.Event(), environment={"KINEMA_METRICS_PORT": "0"})


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def files(workspace: FolderWorkspace) -> list[str]:
    return sorted(path.name for path in workspace.local(FOLDER).glob("*.mp4"))


def test_one_video_for_each_prompt_and_seed(workspace: FolderWorkspace, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    end = sample.run(context(workspace, seeds=[3, 4]))
    assert "%|" not in "".join(capfd.readouterr()), "a bar among the log lines"
    assert end.code == Exit.OK
    assert end.counts == {"videos": 4}
    assert files(workspace) == ["00-seed3.mp4", "00-seed4.mp4", "01-seed3.mp4", "01-seed4.mp4"]
    listed = [json.loads(line) for line in workspace.read(f"{FOLDER}/samples.jsonl").splitlines()]
    assert listed[1] == {"prompt": "a rabbit", "seed": 4, "file": "00-seed4.mp4"}
    assert [item["file"] for item in listed] == files(workspace)
    manifest = artifact.published(workspace, FOLDER)
    assert manifest is not None
    assert {"00-seed3.mp4", "samples.jsonl"} < set(manifest.files)
    with av.open(str(workspace.local(f"{FOLDER}/00-seed3.mp4"))) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.height, stream.width, float(stream.average_rate or 0)) == (5, 32, 48, 8.0)
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"


def test_the_frames_are_those_of_the_pipeline(workspace: FolderWorkspace, weights: Path) -> None:
    sample.run(context(workspace, prompts=["a rabbit"], steps=3, guidance=4.0, negative_prompt="grey", shift=5.0))
    pipeline = WanPipeline.from_pretrained(weights)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=5.0)
    expected = pipeline(
        "a rabbit",
        negative_prompt="grey",
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=64,
    ).frames[0]
    written = frames(workspace.local(f"{FOLDER}/00-seed3.mp4")).astype(float)
    # Brightness only: 4:2:0 halves the resolution of colour, and a toy VAE's output is noise.
    weight = np.array([0.299, 0.587, 0.114])
    assert np.abs(written @ weight - 255 * expected @ weight).mean() < 6
    assert np.corrcoef((written @ weight).ravel(), (expected @ weight).ravel())[0, 1] > 0.98


def test_without_prompts_the_first_captions_are_taken(workspace: FolderWorkspace) -> None:
    sample.run(context(workspace, prompts=[], steps=1))
    listed = [json.loads(line)["prompt"] for line in workspace.read(f"{FOLDER}/samples.jsonl").splitlines()]
    assert listed == ["a clip of v0", "a clip of v1", "a clip of v2", "a clip of v3"]


def test_without_a_geometry_that_of_the_clips_is_taken(workspace: FolderWorkspace) -> None:
    sample.run(context(workspace, prompts=["a bird"], video=None, steps=1))
    assert frames(workspace.local(f"{FOLDER}/00-seed3.mp4")).shape == (5, 32, 48, 3)


def test_finished_videos_are_kept(workspace: FolderWorkspace) -> None:
    workspace.write(f"{FOLDER}/00-seed3.mp4", b"finished before")
    sample.run(context(workspace))
    assert workspace.read(f"{FOLDER}/00-seed3.mp4") == b"finished before"
    assert files(workspace) == ["00-seed3.mp4", "01-seed3.mp4"]


def test_sigterm_leaves_between_steps(workspace: FolderWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = threading.Event()
    original = sample.Studio.report

    def report(self: sample.Studio, *, videos: int, steps: int = 0) -> None:
        original(self, videos=videos, steps=steps)
        if videos == 1 and steps == 1:
            interrupted.set()

    monkeypatch.setattr(sample.Studio, "report", report)
    with pytest.raises(StageError) as caught:
        sample.run(context(workspace, interrupted=interrupted, steps=3))
    assert caught.value.code is Exit.INTERRUPTED
    assert files(workspace) == ["00-seed3.mp4"]
    assert artifact.published(workspace, FOLDER) is None


def test_a_missing_export_says_so(workspace: FolderWorkspace) -> None:
    workspace.delete(f"{RUN}/export")
    with pytest.raises(StageError, match=r"enable stages\.export") as caught:
        sample.run(context(workspace))
    assert caught.value.code is Exit.USER


def test_a_model_that_gives_no_numbers_is_named(workspace: FolderWorkspace) -> None:
    pipeline = WanPipeline.from_pretrained(workspace.local(f"{RUN}/export"))
    with torch.no_grad():
        pipeline.transformer.proj_out.bias.fill_(float("nan"))
    pipeline.save_pretrained(workspace.local(f"{RUN}/export"))
    with pytest.raises(StageError, match="not finite") as caught:
        sample.run(context(workspace))
    assert caught.value.code is Exit.NUMERICS


@pytest.mark.parametrize("task", [Task.I2V, Task.FLF2V])
def test_a_task_that_is_given_frames_begins_with_those_of_the_dataset(
    workspace: FolderWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    spec = entry(f"wan2.1-{task}-tiny")
    shutil.rmtree(workspace.local(f"{RUN}/export"))
    tiny.make(tmp_path / "pipeline", spec=spec)
    shutil.copytree(tmp_path / "pipeline", workspace.local(f"{RUN}/export"))
    artifact.publish(workspace, f"{RUN}/export", artifact.Manifest(stage=Stage.EXPORT, key="uid-1", job="t/job"))
    given: list[tuple[str, Any, Any]] = []
    original = WanImageToVideoPipeline.__call__

    def call(self: Any, *, prompt: str, image: Any, last_image: Any = None, **rest: Any) -> Any:
        given.append((prompt, np.asarray(image), None if last_image is None else np.asarray(last_image)))
        return original(self, prompt=prompt, image=image, last_image=last_image, **rest)

    monkeypatch.setattr(WanImageToVideoPipeline, "__call__", call)
    made = context(workspace, prompts=["a clip of v2", "something else"], steps=1)
    config = made.config.model_copy(
        update={"model": spec, "task": task, "dataset": Dataset(uri=f"file://{tmp_path / 'videos'}")}
    )
    made = make_context(config, interrupted=threading.Event(), environment={"KINEMA_METRICS_PORT": "0"})
    assert sample.run(made).counts == {"videos": 2}
    clips = list(read_clips(workspace, "artifacts/prepare/prepare0"))
    named = next(clip for clip in clips if clip.caption == "a clip of v2")
    for (_, first, last), clip in zip(given, (named, clips[1]), strict=True):
        pixels = clip.decode(tmp_path / "videos" / clip.video)
        assert np.array_equal(first, pixels[0])
        assert last is None if task is Task.I2V else np.array_equal(last, pixels[-1])
    assert frames(workspace.local(f"{FOLDER}/00-seed3.mp4")).shape == (5, 32, 48, 3)


def test_v2v_has_no_pipeline(workspace: FolderWorkspace) -> None:
    made = context(workspace)
    config = made.config.model_copy(update={"task": Task.V2V})
    with pytest.raises(StageError, match=r"leading frames of v2v; disable stages\.sample"):
        sample.run(make_context(config, interrupted=threading.Event(), environment={"KINEMA_METRICS_PORT": "0"}))
