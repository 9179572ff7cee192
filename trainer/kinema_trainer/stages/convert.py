# SPDX-License-Identifier: Apache-2.0
"""Convert: the pretrained transformer as a sharded checkpoint, every tensor compared with its source."""

from __future__ import annotations

import json
import logging

import torch

from kinema_api.exits import Termination
from kinema_api.names import Stage
from kinema_api.stage import ConvertConfig
from kinema_stage.artifact import Manifest, publish, published, sizes, success
from kinema_stage.claim import wait_or_claim
from kinema_stage.context import Context
from kinema_stage.workspace import local_path
from kinema_trainer.models import adapter
from kinema_trainer.weights import CONFIG, Source, check_names, verify_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)


def run(context: Context) -> Termination:
    """Run the convert stage; of several jobs that want the same weights one does the work."""
    claim = wait_or_claim(
        context.workspace,
        context.claim,
        holder=context.holder,
        done=lambda: published(context.workspace, context.folder) is not None,
        interrupted=context.interrupted,
    )
    if claim is None:
        manifest = published(context.workspace, context.folder)
        assert manifest is not None
        return success(context.workspace, context.folder, manifest, reason="ArtifactExists")
    with claim:
        return success(context.workspace, context.folder, _convert(context))


def _convert(context: Context) -> Manifest:
    config = context.config
    assert isinstance(config, ConvertConfig)
    folder = local_path(config.weights) / "transformer"
    source = Source(folder)
    with torch.device("meta"):
        model = adapter(config.model).build(source.config)
    check_names(source, model, folder)
    # What an interrupted attempt left would stay among the files of this one.
    context.workspace.delete(context.folder)
    target = context.workspace.local(context.folder)
    target.mkdir(parents=True)
    total = len(source.shapes)
    write_checkpoint(source, target)
    context.progress.report(done=total, total=2 * total)
    context.check_interrupted()
    verified = verify_checkpoint(source, target)
    context.workspace.write(f"{context.folder}/{CONFIG}", json.dumps(source.config, indent=1).encode())
    context.progress.report(done=2 * total, total=2 * total)
    return publish(
        context.workspace,
        context.folder,
        Manifest(
            stage=Stage.CONVERT,
            key=config.key,
            job=f"{config.job.namespace}/{config.job.name}",
            counts={
                "tensors": total,
                "verified": verified,
                "parameters": sum(shape.numel() for shape in source.shapes.values()),
            },
            files=sizes(context.workspace, context.folder),
        ),
    )
