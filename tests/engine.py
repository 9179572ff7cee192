# SPDX-License-Identifier: Apache-2.0
"""A workspace that the engine can train in, with a model so small that a run takes a second."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kinema_api.catalogue import Entry, entry
from kinema_api.inputs import Storage, Weights
from kinema_api.job import Task
from kinema_api.names import Stage
from kinema_api.settings import ConvertSettings, ExportSettings, TrainSettings
from kinema_api.stage import AnyStageConfig, ConvertConfig, ExportConfig, JobRef, TrainConfig
from kinema_stage.artifact import Manifest, publish, published
from kinema_stage.context import Context, make_context
from kinema_stage.ledger import Ledger
from kinema_stage.pace import NEVER
from kinema_stage.watchdog import Watchdog
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer import launch, tiny, worker
from kinema_trainer.data.shards import EMPTY_TEXT, Sample, Sidecar, dump_tensor, shard_name, sidecar_name, write_shard
from kinema_trainer.numbers import reports
from kinema_trainer.stages import convert

FEATURES, CONVERTED = "f" * 8, "c" * 8
TINY = entry("wan2.1-tiny")
SPEC: Entry = TINY.model_copy(
    update={
        "text_length": 8,
        "defaults": {"prepare": {"video": {"frames": 5, "height": 16, "width": 16, "fps": 8}}},
        "transformer": TINY.transformer.model_copy(
            update={"hidden": 24, "heads": 2, "layers": 2, "ffn": 48, "text_dim": 8, "parameters": 1}
        ),
    }
)
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batchPerDevice": 2,
    "precision": "fp32",
    "optimizer": {"learningRate": 0.01},
    "schedule": {"warmupSteps": 2},
    "checkpoint": {"everySteps": 2},
}


@dataclass(frozen=True)
class Engine:
    """A workspace with features and converted weights."""

    workspace: FolderWorkspace
    weights: Path

    def common(self, name: str) -> dict[str, Any]:
        """What every config says."""
        return {
            "job": JobRef(namespace="local", name=name, uid="0123456789"),
            "workspace": Storage(uri=self.workspace.uri()),
            "model": SPEC,
            "task": Task.T2V,
        }

    def config(self, name: str = "run", **settings: Any) -> TrainConfig:
        """A train config; settings in camelCase over `SETTINGS`."""
        return TrainConfig(
            **self.common(name),
            features_key=FEATURES,
            convert_key=CONVERTED,
            nodes=1,
            devices_per_node=1,
            settings=TrainSettings.model_validate({**SETTINGS, **settings}),
        )

    def export_config(self, name: str = "run", *, ema: bool = False) -> ExportConfig:
        """An export config of the same run."""
        uri = f"file://{self.weights}"
        return ExportConfig(**self.common(name), weights=Weights(uri=uri), ema=ema, settings=ExportSettings())

    def context(self, config: AnyStageConfig) -> Context:
        """What a stage is given."""
        return make_context(config, interrupted=threading.Event(), environment={"KINEMA_METRICS_PORT": "0"})


def make_engine(folder: Path, weights: Path, *, samples: int = 5) -> Engine:
    """Features of `samples` random clips, and the converted weights."""
    workspace = FolderWorkspace(f"file://{folder}")
    stream = torch.Generator().manual_seed(7)
    clips = [
        Sample(
            key=f"clip-{index}",
            latents=torch.randn((16, 2, 4, 4), generator=stream),
            text=torch.randn((3 + index % 3, 8), generator=stream),
        )
        for index in range(samples)
    ]
    name = f"artifacts/features/{FEATURES}"
    target = workspace.local(name)
    target.mkdir(parents=True)
    for number in range(0, samples, 2):
        shard = shard_name(number // 2)
        part = clips[number : number + 2]
        records = write_shard(target / shard, part)
        keys = tuple(sample.key for sample in part)
        sidecar = Sidecar(
            shard=shard,
            size=(target / shard).stat().st_size,
            holder="test",
            clips=keys,
            encoded=keys,
            reused=(),
            records=records,
        )
        (target / sidecar_name(shard)).write_text(sidecar.model_dump_json(by_alias=True))
    (target / EMPTY_TEXT).write_bytes(dump_tensor(torch.zeros(1, 8)))
    publish(workspace, name, Manifest(stage=Stage.FEATURES, key=FEATURES, job="local/test"))
    engine = Engine(workspace=workspace, weights=weights)
    config = ConvertConfig(
        **engine.common("run"), key=CONVERTED, weights=Weights(uri=f"file://{weights}"), settings=ConvertSettings()
    )
    convert.run(engine.context(config))
    assert published(workspace, f"artifacts/convert/{CONVERTED}") is not None
    return engine


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder, see `make_weights`."""
    return make_weights(tmp_path_factory.mktemp("weights") / "pipeline")


def make_weights(folder: Path) -> Path:
    """A pipeline folder with random weights; its head is not zero, so that every parameter matters."""
    pipeline = tiny.make(folder, spec=SPEC, seed=1)
    torch.nn.init.normal_(pipeline.transformer.proj_out.weight, std=0.1)
    pipeline.transformer.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def engine(tmp_path: Path, weights: Path) -> Engine:
    """A fresh workspace."""
    return make_engine(tmp_path / "workspace", weights)


Train = Callable[..., None]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """Trains in this process, as the only one of the run."""
    folder = tmp_path / "reports"
    folder.mkdir()
    inbox = reports.Inbox(folder)
    threads = torch.get_num_threads()

    def run(
        engine: Engine,
        config: TrainConfig,
        *,
        interrupted: threading.Event | None = None,
        watchdog: Watchdog | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        torch.set_num_threads(1)
        environment = launch.Place(nodes=1, node=0, processes=1, address="127.0.0.1", port=0).environment()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        quiet = Watchdog(rule=NEVER, on_stall=lambda stall: None)
        try:
            worker.train(
                config,
                workspace=engine.workspace,
                reporter=reports.Reporter(folder, rank=0),
                watchdog=watchdog or quiet,
                ledger=ledger or Ledger(),
                interrupted=interrupted or threading.Event(),
            )
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    yield run
    inbox.close()
    torch.set_num_threads(threads)
    gc.collect()
