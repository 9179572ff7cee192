# SPDX-License-Identifier: Apache-2.0
"""The stages of a job as local processes, planned as the operator plans them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import torch

from kinema_api.catalogue import entry
from kinema_api.configs import stage_config
from kinema_api.exits import Termination
from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.stage import AnyStageConfig, JobRef
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer import tiny

MODEL = "wan2.1-tiny"
CAPTIONS = (
    "a big white rabbit wakes up in a green meadow",
    "people ride bikes along a road in the city",
    "a close view of a bicycle turning",
    "a young man talks inside a moving car",
)
NOTHING: Mapping[str, str] = MappingProxyType({})
IMAGES = {"stage": "unused", "wan2.1/cpu": "unused"}


@dataclass
class Pipeline:
    """A job whose stages run here, one after another."""

    root: Path
    dataset: Path
    weights: Path
    stages: dict[str, Any] = field(default_factory=dict)
    processes: int = 2
    name: str = "job"
    keys: Keys | None = None

    @property
    def workspace(self) -> FolderWorkspace:
        """The workspace."""
        return FolderWorkspace(f"file://{self.root / 'workspace'}")

    def config(self, stage: Stage, *, attempt: int = 1) -> AnyStageConfig:
        """The config of a stage."""
        spec = JobSpec.model_validate(
            {
                "model": {"name": MODEL, "weights": {"uri": f"file://{self.weights}"}},
                "dataset": {"uri": f"file://{self.dataset}"},
                "storage": {"uri": self.workspace.uri()},
                "defaults": {"pool": "cpu", "devicesPerNode": self.processes},
                "stages": self.stages,
            }
        )
        pool = PoolSpec(accelerator=Accelerator.CPU, devices_per_node=self.processes)
        return stage_config(
            stage=stage,
            spec=spec,
            resolved=freeze(spec=spec, pools={"cpu": pool}, images=IMAGES),
            job=JobRef(namespace="local", name=self.name, uid="0123456789"),
            attempt=attempt,
            keys=self.keys,
        )

    def start(
        self, stage: Stage, *, attempt: int = 1, environment: Mapping[str, str] = NOTHING
    ) -> subprocess.Popen[bytes]:
        """Start a stage; its log and its termination message lie beside the workspace."""
        path = self.root / f"{self.name}-{stage}.json"
        path.write_text(self.config(stage, attempt=attempt).model_dump_json(by_alias=True))
        with self.log(stage).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "kinema_stage.main", stage.value, "--config", str(path)],
                env={
                    **os.environ,
                    "KINEMA_METRICS_PORT": "0",
                    "KINEMA_TERMINATION_LOG": str(self.termination(stage)),
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self, stage: Stage) -> Path:
        """The log of a stage's attempts."""
        return self.root / f"{self.name}-{stage}.log"

    def termination(self, stage: Stage) -> Path:
        """The termination message of a stage's last attempt."""
        return self.root / f"{self.name}-{stage}.termination"

    def end(self, stage: Stage) -> Termination:
        """What a stage's last attempt said."""
        return Termination.model_validate_json(self.termination(stage).read_bytes())

    def run(self, *stages: Stage, timeout: float = 240) -> Termination:
        """Run stages to their end; all must succeed."""
        for stage in stages:
            process = self.start(stage)
            try:
                code = process.wait(timeout)
            finally:
                if process.poll() is None:
                    process.kill()
            assert code == 0, self.log(stage).read_text()[-4000:]
            if stage is Stage.CHECK:
                self.keys = Keys.model_validate(self.end(stage).keys)
        return self.end(stages[-1])

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The whole lines of a file of the job's folder; none while it is not there."""
        path = self.workspace.local(f"{self.config(Stage.CHECK).run}/{name}")
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def make_dataset(folder: Path) -> Path:
    """Four synthetic videos of different scenes, and their captions."""
    folder.mkdir(parents=True)
    video = tiny.geometry(entry(MODEL))
    for number, caption in enumerate(CAPTIONS):
        clip = tiny.synthetic_clip(video, seed=100 + number)
        frames = ((clip.permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        with av.open(str(folder / f"video-{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=round(video.fps), options={"crf": "12"})
            stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        (folder / f"video-{number}.txt").write_text(caption)
    return folder
