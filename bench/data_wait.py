# SPDX-License-Identifier: Apache-2.0
"""How much of a training step goes into waiting for data, in the train stage as a pod runs it.

Clips of 128 to 1024 tokens lie in shards on disk and are packed; each is read for the first time, since there are as
many as the run takes. Loader and model share the processor, which is the hard case: beside an accelerator the loader
has the processor to itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.common import Goal, Side, report
from bench.lengths import FRAMES, SPEC, log_uniform, shape, tokens
from kinema_api.inputs import Storage, Weights
from kinema_api.job import Task
from kinema_api.names import Stage, artifact_folder
from kinema_api.settings import ConvertSettings, TrainSettings
from kinema_api.stage import ConvertConfig, JobRef, StageConfig, TrainConfig
from kinema_stage.artifact import Manifest, publish
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer import tiny
from kinema_trainer.data.shards import EMPTY_TEXT, Sample, Sidecar, dump_tensor, shard_name, sidecar_name, write_shard

GOAL = Goal(at_most=0.02)
BUDGET = 2 * tokens(FRAMES[1])
WARM_UP = 3
"""First steps, which read what nobody could read ahead."""
CLIPS_A_STEP = 6
"""At most, nearly always: the mean clip has a fifth of a pack."""
PER_SHARD = 32


class Setting:
    """Weights, features and configs in a folder."""

    def __init__(self, root: Path, *, steps: int) -> None:
        self.root = root
        self.steps = steps
        self._common: dict[str, Any] = {
            "job": JobRef(namespace="local", name="bench", uid="0123456789"),
            "workspace": Storage(uri=f"file://{root / 'workspace'}"),
            "model": SPEC,
            "task": Task.T2V,
        }

    def train(self) -> list[dict[str, float]]:
        """Train, and return the numbers of each step."""
        torch.manual_seed(0)
        tiny.make_transformer(SPEC).save_pretrained(self.root / "weights" / "transformer")
        weights = Weights(uri=f"file://{self.root / 'weights'}")
        self._run(ConvertConfig(**self._common, key="converted", weights=weights, settings=ConvertSettings()))
        self._features()
        settings = TrainSettings.model_validate(
            {
                "steps": self.steps,
                "packing": {"tokens": BUDGET},
                "precision": "fp32",
                "schedule": {"kind": "constant", "warmupSteps": 0},
                "checkpoint": {"everySteps": 1_000_000},
            }
        )
        config = TrainConfig(
            **self._common,
            features_key="features",
            convert_key="converted",
            nodes=1,
            devices_per_node=1,
            settings=settings,
        )
        self._run(config)
        lines = (self.root / "workspace" / config.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [line for line in map(json.loads, lines) if "step_seconds" in line]

    def _run(self, config: StageConfig) -> None:
        stage = getattr(config, "stage", Stage.TRAIN).value
        path = self.root / f"{stage}.json"
        path.write_text(config.model_dump_json(by_alias=True), encoding="utf-8")
        environment = {"KINEMA_METRICS_PORT": "0", "KINEMA_TERMINATION_LOG": str(self.root / "termination")}
        subprocess.run(
            [sys.executable, "-m", "kinema_stage.main", stage, "--config", str(path)],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )

    def _features(self) -> None:
        workspace = FolderWorkspace(f"file://{self.root / 'workspace'}")
        name = artifact_folder(Stage.FEATURES, "features")
        folder = workspace.local(name)
        folder.mkdir(parents=True)
        lengths = log_uniform(CLIPS_A_STEP * self.steps, seed=0)
        for number, start in enumerate(range(0, len(lengths), PER_SHARD)):
            clips = [
                Sample(
                    key=f"clip-{start + index:05d}",
                    latents=torch.randn(shape(frames)),
                    text=torch.randn(SPEC.text_length, SPEC.transformer.text_dim),
                )
                for index, frames in enumerate(lengths[start : start + PER_SHARD])
            ]
            path = folder / shard_name(number)
            records = write_shard(path, clips)
            keys = tuple(clip.key for clip in clips)
            sidecar = Sidecar(
                shard=path.name,
                size=path.stat().st_size,
                holder="bench",
                clips=keys,
                encoded=keys,
                reused=(),
                records=records,
            )
            (folder / sidecar_name(path.name)).write_text(sidecar.model_dump_json(by_alias=True), encoding="utf-8")
        (folder / EMPTY_TEXT).write_bytes(dump_tensor(torch.zeros(1, SPEC.transformer.text_dim)))
        publish(workspace, name, Manifest(stage=Stage.FEATURES, key="features", job="local/bench"))


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=60, help="steps of the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kinema-bench-") as folder:
        steps = Setting(Path(folder), steps=options.steps).train()[WARM_UP:]
    waits, seconds = [step["data_seconds"] for step in steps], [step["step_seconds"] for step in steps]
    holds = report(
        "data_wait",
        ours=Side("waiting for data", sum(waits) / len(steps), "s a step", {"seconds": waits}),
        reference=Side("the whole step", sum(seconds) / len(steps), "s a step", {"seconds": seconds}),
        goal=GOAL,
        settings={
            "steps": options.steps,
            "tokens": [tokens(FRAMES[0]), tokens(FRAMES[1])],
            "tokensOfAPass": BUDGET,
            "transformer": SPEC.transformer.model_dump(exclude={"parameters"}),
        },
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
