# SPDX-License-Identifier: Apache-2.0
"""What the train stage costs beside the model: its steps against those of a bare PyTorch loop.

Ours is `kinema-stage train` as a pod runs it: worker process, FSDP2, loader, objective, optimizer, meter, logs and
reports; no checkpoint falls into the measured steps. The bare loop has the same diffusers model and weights, AdamW
with the same numbers, the same batch, and float32 as well. Both take turns on the same cores.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.common import Goal, Side, report
from bench.turns import Player, Turn
from kinema_api.catalogue import Entry, entry
from kinema_api.inputs import Storage, Weights
from kinema_api.job import Task
from kinema_api.names import Stage, artifact_folder
from kinema_api.settings import ConvertSettings, TrainSettings
from kinema_api.stage import ConvertConfig, JobRef, StageConfig, TrainConfig
from kinema_stage.artifact import Manifest, publish
from kinema_stage.context import make_context
from kinema_trainer import tiny
from kinema_trainer.data.shards import EMPTY_TEXT, Sample, Sidecar, dump_tensor, shard_name, sidecar_name, write_shard
from kinema_trainer.threads import cpu_threads

FEATURES, CONVERTED = "features", "converted"
SAMPLES, BATCH = 16, 2
SHAPE = (16, 5, 16, 24)
"""Latents of 17 frames of 128 x 192 pixels: 480 tokens."""
TOY = entry("wan2.1-tiny")
SPEC: Entry = TOY.model_copy(
    update={
        "transformer": TOY.transformer.model_copy(
            update={"hidden": 384, "heads": 6, "layers": 6, "ffn": 1536, "text_dim": 128}
        )
    }
)
GOAL = Goal(at_most=1.05)
LEAST_STEP = 0.3


class Setting:
    """Weights, features and configs of a model in a folder."""

    def __init__(self, root: Path, *, processes: int, threads: int, spec: Entry = SPEC) -> None:
        self.root = root
        self.spec = spec
        self.processes = processes
        self.threads = threads
        self.weights = root / "weights"
        self.samples = root / "samples.pt"
        self.settings = TrainSettings.model_validate(
            {
                "steps": 1_000_000,
                "batchPerDevice": BATCH,
                "precision": "fp32",
                "optimizer": {"learningRate": 1e-4},
                "objective": {"preset": "dfm-finetune"},
                "schedule": {"kind": "constant"},
                "checkpoint": {"everySteps": 1_000_000},
                # A process that waits for its turn is not hung.
                "stallSeconds": 86_400,
            }
        )
        self._common: dict[str, Any] = {
            "job": JobRef(namespace="local", name="bench", uid="0123456789"),
            "workspace": Storage(uri=f"file://{root / 'workspace'}"),
            "model": spec,
            "task": Task.T2V,
        }

    def make(self) -> None:
        """Write everything that training reads."""
        torch.manual_seed(0)
        model = tiny.make_transformer(self.spec)
        torch.nn.init.normal_(model.proj_out.weight, std=0.02)
        model.save_pretrained(self.weights / "transformer")
        weights = Weights(uri=f"file://{self.weights}")
        self._stage(ConvertConfig(**self._common, key=CONVERTED, weights=weights, settings=ConvertSettings()))
        self._features()

    def _stage(self, config: StageConfig) -> None:
        subprocess.run(self._command(config), check=True, capture_output=True)

    def _command(self, config: StageConfig) -> list[str]:
        stage = getattr(config, "stage", Stage.TRAIN).value
        path = self.root / f"{stage}.json"
        path.write_text(config.model_dump_json(by_alias=True), encoding="utf-8")
        return [sys.executable, "-m", "kinema_stage.main", stage, "--config", str(path)]

    def _features(self) -> None:
        length, width = self.spec.text_length, self.spec.transformer.text_dim
        clips = [
            Sample(key=f"clip-{index:02d}", latents=torch.randn(SHAPE), text=torch.randn(length, width))
            for index in range(SAMPLES)
        ]
        torch.save(
            {"latents": torch.stack([c.latents for c in clips]), "text": torch.stack([c.text for c in clips])},
            self.samples,
        )
        name = artifact_folder(Stage.FEATURES, FEATURES)
        folder = self.root / "workspace" / name
        folder.mkdir(parents=True)
        shard = shard_name(0)
        records = write_shard(folder / shard, clips)
        keys = tuple(clip.key for clip in clips)
        size = (folder / shard).stat().st_size
        sidecar = Sidecar(shard=shard, size=size, holder="bench", clips=keys, encoded=keys, reused=(), records=records)
        (folder / sidecar_name(shard)).write_text(sidecar.model_dump_json(by_alias=True), encoding="utf-8")
        (folder / EMPTY_TEXT).write_bytes(dump_tensor(torch.zeros(1, width)))
        context = make_context(self.train, interrupted=threading.Event(), environment={"KINEMA_METRICS_PORT": "0"})
        publish(context.workspace, name, Manifest(stage=Stage.FEATURES, key=FEATURES, job="local/bench"))

    @property
    def train(self) -> TrainConfig:
        """The train stage's config."""
        return TrainConfig(
            **self._common,
            features_key=FEATURES,
            convert_key=CONVERTED,
            nodes=1,
            devices_per_node=self.processes,
            settings=self.settings,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The same threads for both sides."""
        return {
            "OMP_NUM_THREADS": str(self.threads),
            "KINEMA_METRICS_PORT": "0",
            "KINEMA_TERMINATION_LOG": str(self.root / "termination"),
        }

    @property
    def numbers(self) -> dict[str, float]:
        """What the bare loop is told, so that its steps are those of the train stage."""
        optimizer = self.settings.optimizer
        return {
            "learningRate": optimizer.learning_rate,
            "beta1": optimizer.beta1,
            "beta2": optimizer.beta2,
            "epsilon": optimizer.epsilon,
            "weightDecay": optimizer.weight_decay,
            "clipNorm": optimizer.clip_norm,
            "batch": BATCH,
            "shift": self.settings.objective.recipe.shift,
        }

    def ours(self) -> Player:
        """The train stage."""
        return Player(
            "the train stage",
            command=self._command(self.train),
            environment=self.environment,
            steps=self.root / "workspace" / self.train.run / "metrics.jsonl",
            log=self.root / "ours.log",
        )

    def bare(self) -> Player:
        """The bare loop."""
        steps = self.root / "bare.jsonl"
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return Player(
            "the bare loop",
            command=[
                sys.executable,
                *(torchrun if self.processes > 1 else []),
                str(Path(__file__).with_name("bare_loop.py")),
                f"--weights={self.weights}",
                f"--samples={self.samples}",
                f"--steps={steps}",
                f"--numbers={json.dumps(self.numbers)}",
            ],
            environment=self.environment,
            steps=steps,
            log=self.root / "bare.log",
        )


def measure(setting: Setting, *, turns: int, steps: int) -> tuple[list[Turn], list[Turn]]:
    """The turns of ours and of the bare loop. Who begins alternates."""
    ours: list[Turn] = []
    bare: list[Turn] = []
    with ExitStack() as stack:
        sides = []
        for player, found in ((setting.ours(), ours), (setting.bare(), bare)):
            stack.enter_context(player)
            player.turn(3)
            sides.append((player, found))
        for number in range(turns):
            for player, found in sides if number % 2 == 0 else sides[::-1]:
                found.append(player.turn(steps))
    return ours, bare


def side(what: str, turns: list[Turn]) -> Side:
    """A side's median step. Processor seconds tell more than time where other programs use the machine too."""
    raw = {
        "stepSeconds": [turn.seconds for turn in turns],
        "processorSecondsPerStep": [turn.cpu for turn in turns],
        "medianProcessorSeconds": statistics.median(turn.cpu for turn in turns),
    }
    return Side(what=what, value=statistics.median(t for turn in turns for t in turn.seconds), unit="s a step", raw=raw)


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=1, help="training processes; above 1 both sides use FSDP2")
    parser.add_argument("--turns", type=int, default=30, help="turns of each side")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a turn")
    parser.add_argument("--threads", type=int, help="of each process; as many as the cores allow when left out")
    options = parser.parse_args()
    threads = options.threads or cpu_threads(options.processes)
    # So that a told stop stops the programs too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="kinema-bench-") as folder:
        setting = Setting(Path(folder), processes=options.processes, threads=threads)
        setting.make()
        turns = measure(setting, turns=options.turns, steps=options.steps)
    ours, bare = side("kinema-stage train", turns[0]), side("bare PyTorch loop", turns[1])
    if bare.value < LEAST_STEP:
        print(f"steps of {bare.value:.3f} s are too short to say anything: {LEAST_STEP} s at least", file=sys.stderr)
        return 1
    holds = report(
        "train_overhead" if options.processes == 1 else f"train_overhead_{options.processes}_processes",
        ours=ours,
        reference=bare,
        goal=GOAL,
        settings={
            "processes": options.processes,
            "threads": threads,
            "batch": BATCH,
            "latents": SHAPE,
            "transformer": SPEC.transformer.model_dump(exclude={"parameters"}),
            "precision": "float32",
            "turns": options.turns,
            "steps": options.steps,
        },
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
