# SPDX-License-Identifier: Apache-2.0
"""Convert: the pretrained transformer as a sharded checkpoint, every tensor compared with its source."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from kinema_api.exits import Termination
from kinema_api.names import Stage
from kinema_api.stage import ConvertConfig
from kinema_stage.artifact import Manifest, published, seal, success
from kinema_stage.claim import Claim, wait_or_claim
from kinema_stage.context import Context
from kinema_stage.weights import fetch
from kinema_trainer.checkpoints.tally import Tally
from kinema_trainer.checkpoints.weights import CONFIG, Source, check_names, verify_checkpoint, write_checkpoint
from kinema_trainer.models import adapter

logger = logging.getLogger(__name__)


def run(context: Context) -> Termination:
    """Run the convert stage; of several jobs that want the same weights one does the work."""
    workspace, folder = context.workspace, context.folder
    while True:
        claim = wait_or_claim(
            workspace,
            context.claim,
            holder=context.holder,
            done=lambda: published(workspace, folder) is not None,
            interrupted=context.interrupted,
            moved=context.progress.moved,
        )
        if claim is None:
            manifest = published(workspace, folder)
            assert manifest is not None
            return success(workspace, folder, manifest, reason="ArtifactExists")
        with claim, workspace.scratch(folder) as scratch:
            manifest = _convert(context, scratch)
            if _place(context, scratch, claim):
                return success(workspace, folder, manifest)
        logger.warning("another worker has taken over: its result counts")


def _convert(context: Context, scratch: Path) -> Manifest:
    """Fill a scratch folder with the whole artifact, manifest and all."""
    config = context.config
    assert isinstance(config, ConvertConfig)
    folder = fetch(config.weights, "transformer") / "transformer"
    source = Source(folder)
    with torch.device("meta"):
        model = adapter(config.model).build(source.config)
    check_names(source, model, folder)
    total = len(source.shapes)
    tally = Tally(context, 2 * total)
    write_checkpoint(source, scratch, on_tensor=tally)
    verified = verify_checkpoint(source, FileSystemReader(scratch), on_tensor=tally)
    (scratch / CONFIG).write_text(json.dumps(source.config, indent=1))
    return seal(
        scratch,
        Manifest(
            stage=Stage.CONVERT,
            key=config.key,
            job=f"{config.job.namespace}/{config.job.name}",
            counts={
                "tensors": total,
                "verified": verified,
                "parameters": sum(shape.numel() for shape in source.shapes.values()),
            },
        ),
    )


def _place(context: Context, scratch: Path, claim: Claim) -> bool:
    """Put the artifact in place, all at once; False when the work is no longer ours, or another was first."""
    if not claim.beat() or published(context.workspace, context.folder) is not None:
        return False
    # A folder without a manifest is what an interrupted attempt left.
    context.workspace.delete(context.folder)
    return context.workspace.place(scratch, context.folder)
