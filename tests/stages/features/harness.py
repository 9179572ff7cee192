# SPDX-License-Identifier: Apache-2.0
"""A small dataset in a workspace, and workers that encode it in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from kinema_api.catalogue import entry
from kinema_api.exits import StageError, Termination
from kinema_api.inputs import Dataset, Storage, Weights
from kinema_api.job import Task
from kinema_api.names import Stage, artifact_folder
from kinema_api.settings import ClipVideo, FeaturesSettings
from kinema_api.stage import FeaturesConfig, JobRef, load_config
from kinema_stage import artifact, clips, video
from kinema_stage.context import Context, make_context
from kinema_stage.workspace import Workspace
from kinema_trainer.data.shards import Sidecar
from kinema_trainer.encoding.encoders import Encoders
from kinema_trainer.encoding.mp4 import write_mp4
from kinema_trainer.stages import features

GEOMETRY = ClipVideo(frames=5, height=32, width=48, fps=8)
TTL = 4.0
ENCODER = "encoder0"


def make_video(path: Path, *, seed: int, frames: int = GEOMETRY.frames) -> None:
    """A few coloured bars that move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    picture = random.integers(0, 255, (1, 1, 8, 3)).repeat(40, axis=1).repeat(8, axis=2).astype(np.uint8)
    write_mp4(path, np.concatenate([np.roll(picture, 2 * step, axis=2) for step in range(frames)]), fps=GEOMETRY.fps)


def list_clips(workspace: Workspace, videos: Path, *, key: str) -> tuple[clips.Clip, ...]:
    """Cut every video of a folder and publish the list, as prepare does."""
    found: list[clips.Clip] = []
    for path in sorted(videos.glob("*.mp4")):
        cut = clips.cut(
            video=path.name,
            tag=path.stem,
            caption=f"a clip of {path.stem}",
            info=video.probe(path),
            settings=GEOMETRY,
        )
        assert isinstance(cut, clips.Cut), cut
        found += cut.clips
    folder = artifact_folder(Stage.PREPARE, key)
    clips.write(workspace, folder, clips=found, quarantined=[])
    artifact.publish(workspace, folder, artifact.Manifest(stage=Stage.PREPARE, key=key, job="t/t"))
    return tuple(found)


def make_config(
    workspace: Workspace,
    weights: Path,
    *,
    key: str = "features0",
    prepare: str = "prepare0",
    uid: str = "uid-1",
    workers: int = 1,
    per_shard: int = 2,
    task: Task = Task.T2V,
) -> FeaturesConfig:
    """The config of a features stage at toy size; the videos lie beside the workspace."""
    return FeaturesConfig(
        job=JobRef(namespace="t", name="job", uid=uid),
        workspace=Storage(uri=workspace.uri()),
        model=entry("wan2.1-tiny"),
        task=task,
        key=key,
        dataset=Dataset(uri=f"{workspace.uri().rpartition('/')[0]}/videos"),
        prepare_key=prepare,
        encoder_key=ENCODER,
        weights=Weights(uri=f"file://{weights}"),
        settings=FeaturesSettings(workers=workers, clips_per_shard=per_shard),
    )


def make(config: FeaturesConfig, *, worker: int = 0, interrupted: threading.Event | None = None) -> Context:
    """The context of a worker without server and metrics port."""
    return make_context(
        config,
        interrupted=interrupted or threading.Event(),
        environment={"JOB_COMPLETION_INDEX": str(worker), "KINEMA_METRICS_PORT": "0"},
    )


def run(config: FeaturesConfig, *, worker: int = 0) -> Termination:
    """Encode in this process."""
    return features.run(make(config, worker=worker), ttl=TTL)


def sidecars(workspace: Workspace, folder: str) -> list[Sidecar]:
    """The finished shards of a folder."""
    paths = [path for path in workspace.list(folder) if Path(path).match("shard-*.json") and "/audit/" not in path]
    return [Sidecar.model_validate_json(workspace.read(path)) for path in paths]


def encoded_keys(workspace: Workspace, folder: str) -> list[str]:
    """Every key that was encoded into a shard brought to its end, as often as that happened."""
    audits = [json.loads(workspace.read(path)) for path in workspace.list(f"{folder}/audit")]
    return sorted(key for audit in audits for key in audit["encoded"])


def _work(config: str, worker: int, hang_at: int, outcome: str) -> None:
    """The body of a worker process; it freezes when it has encoded `hang_at` clips."""
    loaded = load_config(config)
    assert isinstance(loaded, FeaturesConfig)
    original, count = Encoders.latents, [0]

    def latents(self: Encoders, clip: object) -> object:
        if count[0] == hang_at:
            Path(outcome).with_suffix(".hangs").touch()
            threading.Event().wait()
        count[0] += 1
        return original(self, clip)  # type: ignore[arg-type]

    Encoders.latents = latents  # type: ignore[assignment,method-assign]
    try:
        end = features.run(make(loaded, worker=worker), ttl=TTL)
    except StageError as error:
        end = Termination(code=error.code, message=error.message)
    Path(outcome).write_text(end.model_dump_json())


class Worker:
    """A worker in a process of its own."""

    def __init__(self, process: BaseProcess, outcome: Path) -> None:
        self.process = process
        self._outcome = outcome

    @property
    def hangs(self) -> bool:
        """Whether it has reached the clip at which it freezes."""
        return self._outcome.with_suffix(".hangs").exists()

    def end(self) -> Termination:
        """Wait for its end."""
        self.process.join(90)
        assert self.process.exitcode == 0, f"exit code {self.process.exitcode}"
        return Termination.model_validate_json(self._outcome.read_text())


@contextmanager
def workers(folder: Path, jobs: Sequence[tuple[FeaturesConfig, int, int]]) -> Iterator[list[Worker]]:
    """Worker processes, all started: (config, worker index, clips after which it freezes or -1)."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    # The libraries are imported once; every worker is a fork of that process, which has no threads.
    context.set_forkserver_preload([__name__])
    started = []
    for number, (config, worker, hang_at) in enumerate(jobs):
        outcome = folder / f"outcome-{number}.json"
        outcome.with_suffix(".hangs").unlink(missing_ok=True)
        process = context.Process(
            target=_work, args=(config.model_dump_json(by_alias=True), worker, hang_at, str(outcome))
        )
        process.start()
        started.append(Worker(process, outcome))
    try:
        yield started
    finally:
        for item in started:
            item.process.kill()
            item.process.join()
