# SPDX-License-Identifier: Apache-2.0
"""Weights to a sharded checkpoint and back, and what happens to damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.storage import StorageReader

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Weights
from kinema_api.names import Stage
from kinema_api.settings import ConvertSettings
from kinema_api.stage import ConvertConfig
from kinema_stage.artifact import Manifest, publish, published
from kinema_stage.claim import try_claim
from kinema_trainer.checkpoints.weights import (
    Source,
    read_config,
    read_into,
    same_bits,
    verify_checkpoint,
    write_checkpoint,
)
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.stages import convert

from tests.engine import CONVERTED, Engine

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def transformer(tmp_path: Path, weights: Path) -> Path:
    """A copy of the transformer's folder that a test may damage."""
    return Path(shutil.copytree(weights / "transformer", tmp_path / "pipeline" / "transformer"))


def convert_config(engine: Engine, pipeline: Path) -> ConvertConfig:
    uri = f"file://{pipeline}"
    return ConvertConfig(**engine.common("other"), key="d" * 8, weights=Weights(uri=uri), settings=ConvertSettings())


def test_round_trip_is_exact(engine: Engine, weights: Path, tmp_path: Path) -> None:
    folder = engine.workspace.local(f"artifacts/convert/{CONVERTED}")
    model = ADAPTER.build(read_config(folder))
    read_into(model, FileSystemReader(folder))
    ADAPTER.save(model, tmp_path / "back")
    before, after = load_file(weights / "transformer" / FILE), load_file(tmp_path / "back" / FILE)
    assert before.keys() == after.keys()
    assert all(same_bits(tensor, after[name]) for name, tensor in before.items())


def test_stored_number_formats_and_odd_values_survive(transformer: Path, tmp_path: Path) -> None:
    tensors = load_file(transformer / FILE)
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(torch.bfloat16)
    tensors["proj_out.bias"][:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    save_file(tensors, transformer / FILE)
    write_checkpoint(Source(transformer), tmp_path / "checkpoint")
    assert verify_checkpoint(Source(transformer), FileSystemReader(tmp_path / "checkpoint")) == len(tensors)


def test_a_changed_tensor_is_found(transformer: Path, tmp_path: Path) -> None:
    write_checkpoint(Source(transformer), tmp_path / "checkpoint")
    tensors = load_file(transformer / FILE)
    tensors["blocks.1.ffn.net.2.bias"][0] += 1e-7
    save_file(tensors, transformer / FILE)
    with pytest.raises(StageError, match=r"tensor blocks\.1\.ffn\.net\.2\.bias read back differs") as caught:
        verify_checkpoint(Source(transformer), FileSystemReader(tmp_path / "checkpoint"))
    assert caught.value.code is Exit.STORAGE


def test_weights_in_several_files_are_read_by_their_index(transformer: Path, tmp_path: Path) -> None:
    tensors = load_file(transformer / FILE)
    names = sorted(tensors)
    table = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(names)}
    for part in sorted(set(table.values())):
        save_file({name: tensors[name] for name in names if table[name] == part}, transformer / part)
    (transformer / FILE).unlink()
    (transformer / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    write_checkpoint(Source(transformer), tmp_path / "checkpoint")
    assert verify_checkpoint(Source(transformer), FileSystemReader(tmp_path / "checkpoint")) == len(tensors)
    (transformer / "part-1.safetensors").unlink()
    with pytest.raises(StageError, match=r"lacks part-1\.safetensors: download the weights again"):
        Source(transformer)


def test_weights_that_do_not_fit_their_config_are_named(engine: Engine, transformer: Path) -> None:
    tensors = load_file(transformer / FILE)
    del tensors["proj_out.bias"]
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, transformer / FILE)
    config = convert_config(engine, transformer.parent)
    with pytest.raises(StageError, match=r"lacks proj_out\.bias, it has an unknown extra") as caught:
        convert.run(engine.context(config))
    assert caught.value.code is Exit.WEIGHTS
    assert published(engine.workspace, f"artifacts/convert/{config.key}") is None


def test_truncated_weights_are_named(engine: Engine, transformer: Path) -> None:
    data = (transformer / FILE).read_bytes()
    (transformer / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(StageError, match="cannot be read") as caught:
        convert.run(engine.context(convert_config(engine, transformer.parent)))
    assert caught.value.code is Exit.WEIGHTS


def test_convert_clears_what_an_interrupted_attempt_left(engine: Engine, weights: Path) -> None:
    config = convert_config(engine, weights)
    stale = f"artifacts/convert/{config.key}/__0_7.distcp"
    engine.workspace.write(stale, b"half")
    end = convert.run(engine.context(config))
    assert end.counts["verified"] == end.counts["tensors"] > 50
    assert not engine.workspace.exists(stale)
    manifest = published(engine.workspace, f"artifacts/convert/{config.key}")
    assert manifest is not None
    assert {".metadata", "config.json"} <= manifest.files.keys()
    assert convert.run(engine.context(config)).reason == "ArtifactExists"


def test_convert_hears_sigterm_between_two_tensors(
    engine: Engine, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = convert_config(engine, weights)
    context = engine.context(config)
    read, names = Source.read, list[str]()

    def interrupt(self: Source, name: str) -> torch.Tensor:
        names.append(name)
        if len(names) == 3:
            context.interrupted.set()
        return read(self, name)

    monkeypatch.setattr(Source, "read", interrupt)
    with pytest.raises(StageError) as caught:
        convert.run(context)
    assert caught.value.code is Exit.INTERRUPTED
    assert len(names) == 3
    assert [path.name for path in engine.workspace.local("artifacts/convert").iterdir()] == [CONVERTED]


def test_a_convert_that_lost_its_claim_publishes_nothing(
    engine: Engine, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = convert_config(engine, weights)
    context = engine.context(config)
    there: list[bool] = []

    def rob(source: Source, checkpoint: StorageReader, **options: Any) -> int:
        there.append(engine.workspace.exists(context.folder))
        if len(there) == 1:
            # The same holder may take over at once: what a replaced pod does.
            assert try_claim(engine.workspace, context.claim, holder=context.holder) is not None
        return verify_checkpoint(source, checkpoint, **options)

    monkeypatch.setattr(convert, "verify_checkpoint", rob)
    assert convert.run(context).reason == "Succeeded"
    assert there == [False, False], "the robbed attempt left the work to the next one, and neither showed half of it"
    names = {path.name for path in engine.workspace.local("artifacts/convert").iterdir()}
    assert names == {CONVERTED, config.key}


def test_a_convert_that_another_finished_first_keeps_that_result(
    engine: Engine, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = convert_config(engine, weights)
    context = engine.context(config)

    def finish(source: Source, checkpoint: StorageReader, **options: Any) -> int:
        publish(engine.workspace, context.folder, Manifest(stage=Stage.CONVERT, key=config.key, job="local/first"))
        return verify_checkpoint(source, checkpoint, **options)

    monkeypatch.setattr(convert, "verify_checkpoint", finish)
    assert convert.run(context).reason == "ArtifactExists"
    manifest = published(engine.workspace, context.folder)
    assert manifest is not None and manifest.job == "local/first"
