# SPDX-License-Identifier: Apache-2.0
"""Export: a pipeline folder that diffusers loads, of the newest checkpoint and the pretrained pipeline's other parts.

A run of LoRA gives the pretrained pipeline, whole, and its additions beside it. Every tensor that was written is
compared with the checkpoint, bit by bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.lora import Lora
from kinema_api.names import Stage
from kinema_api.stage import ExportConfig
from kinema_stage.artifact import Manifest, publish, published, sizes, success
from kinema_stage.context import Context
from kinema_stage.weights import fetch
from kinema_trainer.checkpoints import dcp, lora_file
from kinema_trainer.checkpoints.folders import Found, require
from kinema_trainer.checkpoints.tally import Tally
from kinema_trainer.checkpoints.weights import Source, check_names, read_config, read_into, verify_checkpoint
from kinema_trainer.models import adapter

TRANSFORMER = "transformer"


def run(context: Context) -> Termination:
    """Run the export stage."""
    config = context.config
    assert isinstance(config, ExportConfig)
    found = require(context.workspace, f"{config.run}/checkpoints")
    manifest = published(context.workspace, context.folder)
    if manifest is not None and manifest.details.get("step") == found.position.step:
        return success(context.workspace, context.folder, manifest, reason="ArtifactExists")
    with context.workspace.scratch(context.folder) as scratch:
        _fill(context, config, found, scratch)
        context.workspace.delete(context.folder)
        if not context.workspace.place(scratch, context.folder):
            raise StageError(Exit.STORAGE, f"{context.workspace.uri(context.folder)}: another process writes there")
    manifest = publish(
        context.workspace,
        context.folder,
        Manifest(
            stage=Stage.EXPORT,
            key=config.job.uid,
            job=f"{config.job.namespace}/{config.job.name}",
            counts={"step": found.position.step},
            files=sizes(context.workspace, context.folder),
            details={"step": found.position.step, "ema": config.ema},
        ),
    )
    return success(context.workspace, context.folder, manifest)


def _fill(context: Context, config: ExportConfig, found: Found, scratch: Path) -> None:
    lora = found.manifest.details.get("lora")
    pipeline = fetch(config.weights)
    under = "ema" if config.ema else "model"
    if lora is None:
        _write_transformer(context, config, found, scratch, pipeline=pipeline, under=under)
        return
    parts = parts_of(pipeline, transformer=True)
    tally = Tally(context, len(parts) + 1)
    _copy(pipeline, parts, scratch, tally)
    tensors = lora_file.read(dcp.reader(context.workspace, found.folder), under=under)
    lora_file.write(tensors, Lora.stored(lora), scratch, pipeline=config.model.pipeline)
    tally()


def _write_transformer(
    context: Context, config: ExportConfig, found: Found, scratch: Path, *, pipeline: Path, under: str
) -> None:
    """Write the trained transformer, and the other parts beside it."""
    family = adapter(config.model)
    parts = parts_of(pipeline)
    settings = read_config(pipeline / TRANSFORMER)
    with torch.device("meta"):
        model = family.build(settings).float().eval()
    tally = Tally(context, len(parts) + len(list(model.parameters())))
    _copy(pipeline, parts, scratch, tally)
    model.to_empty(device="cpu")
    family.restore_buffers(model, torch.device("cpu"))
    read_into(model, dcp.reader(context.workspace, found.folder), under=under)
    context.check_interrupted()
    family.save(model, scratch / TRANSFORMER)
    source = Source(scratch / TRANSFORMER)
    check_names(source, model, scratch / TRANSFORMER)
    del model
    verify_checkpoint(source, dcp.reader(context.workspace, found.folder), under=under, on_tensor=tally)


def _copy(pipeline: Path, parts: list[Path], scratch: Path, tally: Tally) -> None:
    for part in parts:
        tally()
        (scratch / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(pipeline / part, scratch / part)


def parts_of(pipeline: Path, *, transformer: bool = False) -> list[Path]:
    """Every file of a pipeline folder, relative to it.

    Args:
        pipeline: the folder.
        transformer: with its transformer's files.

    Raises:
        StageError: it is no pipeline folder.
    """
    if not (pipeline / "model_index.json").is_file():
        raise StageError(Exit.WEIGHTS, f"{pipeline} has no model_index.json: weights.uri must be a diffusers pipeline")
    hidden = () if transformer else (TRANSFORMER,)
    tops = [path for path in pipeline.iterdir() if path.name not in hidden and not path.name.startswith(".")]
    found = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()]
    return sorted(path.relative_to(pipeline) for path in found)
