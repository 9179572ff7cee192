# SPDX-License-Identifier: Apache-2.0
"""Export: a pipeline folder that diffusers loads: the newest checkpoint, and the pretrained pipeline's other parts."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.names import Stage
from kinema_api.stage import ExportConfig
from kinema_stage.artifact import Manifest, publish, published, sizes, success
from kinema_stage.context import Context
from kinema_stage.workspace import local_path
from kinema_trainer.checkpoints import Found, require
from kinema_trainer.models import Adapter, adapter
from kinema_trainer.weights import read_config, read_into

TRANSFORMER = "transformer"


def run(context: Context) -> Termination:
    """Run the export stage."""
    config = context.config
    assert isinstance(config, ExportConfig)
    found = require(context.workspace, f"{config.run}/checkpoints")
    manifest = published(context.workspace, context.folder)
    if manifest is not None and manifest.details.get("step") == found.position.step:
        return success(context.workspace, context.folder, manifest, reason="ArtifactExists")
    with _scratch(context) as scratch:
        _fill(context, config, found, scratch)
        context.workspace.delete(context.folder)
        target = context.workspace.local(context.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(target)
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


@contextlib.contextmanager
def _scratch(context: Context) -> Iterator[Path]:
    """A folder beside the target, on the same file system, removed unless it was renamed into place."""
    parent = context.workspace.local(context.folder).parent
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(".kinema-tmp-export-*"):
        shutil.rmtree(left)
    folder = parent / f".kinema-tmp-export-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(context: Context, config: ExportConfig, found: Found, scratch: Path) -> None:
    family = adapter(config.model)
    pipeline = local_path(config.weights)
    context.progress.report(done=0, total=3)
    copy_parts(pipeline, scratch)
    context.check_interrupted()
    context.progress.report(done=1, total=3)
    model = family.build(read_config(pipeline / TRANSFORMER)).float().eval()
    read_into(model, context.workspace.local(found.folder), under="ema" if config.ema else "model")
    family.save(model, scratch / TRANSFORMER)
    context.progress.report(done=2, total=3)
    wanted = probe(family, model, config)
    del model
    verify(family, scratch / TRANSFORMER, wanted, config)
    context.progress.report(done=3, total=3)


def copy_parts(pipeline: Path, target: Path) -> None:
    """Copy everything of a pipeline folder but its transformer.

    Raises:
        StageError: it is no pipeline folder.
    """
    if not (pipeline / "model_index.json").is_file():
        raise StageError(Exit.WEIGHTS, f"{pipeline} has no model_index.json: weights.uri must be a diffusers pipeline")
    for part in sorted(pipeline.iterdir()):
        if part.name == TRANSFORMER or part.name.startswith("."):
            continue
        if part.is_dir():
            shutil.copytree(part, target / part.name)
        else:
            shutil.copy2(part, target / part.name)


@torch.no_grad()
def probe(family: Adapter, model: nn.Module, config: ExportConfig) -> Tensor:
    """The transformer's answer to one fixed small input."""
    entry = config.model
    stream = torch.Generator().manual_seed(0)
    patch = entry.transformer.patch
    latents = torch.randn((1, entry.vae.channels, 2 * patch[0], 2 * patch[1], 2 * patch[2]), generator=stream)
    text = torch.randn((1, min(8, entry.text_length), entry.transformer.text_dim), generator=stream)
    return family.forward(model, latents=latents, sigma=torch.tensor([0.7]), text=text, dtype=torch.float32)


def verify(family: Adapter, folder: Path, wanted: Tensor, config: ExportConfig) -> None:
    """Load what was written and compare its forward pass with that of the checkpoint.

    Raises:
        StageError: they differ.
    """
    difference = float((probe(family, family.load(folder), config) - wanted).abs().max())
    if not difference <= 1e-6:
        raise StageError(
            Exit.STORAGE,
            f"the exported transformer differs from the checkpoint by {difference:g}: the workspace is faulty",
        )
