# SPDX-License-Identifier: Apache-2.0
"""features: encode every clip once, in shards that any number of workers and jobs fill side by side.

A shard belongs to whoever holds its claim, and is done once its sidecar is there; the sidecar is created after the tar
file is in place and never changes. Whoever sees the last sidecar publishes the artifact.
"""

from __future__ import annotations

import logging

import torch

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.inputs import DatasetFormat
from kinema_api.names import Stage, artifact_folder
from kinema_api.stage import FeaturesConfig
from kinema_stage import artifact, clips
from kinema_stage.claim import TTL, try_claim, wait_or_claim
from kinema_stage.context import Context
from kinema_stage.weights import IMAGE, fetch
from kinema_trainer import device
from kinema_trainer.data import energon
from kinema_trainer.data.mock import MockEncoders
from kinema_trainer.data.shards import EMPTY_TEXT, Sidecar, dump_tensor, sidecar_name
from kinema_trainer.encoding import reuse
from kinema_trainer.encoding.encoders import DTYPES, Encoders
from kinema_trainer.encoding.work import ClaimLostError, ShardEncoder, ShardPlan, order, plan

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


def run(context: Context, *, ttl: float = TTL) -> Termination:
    """Encode what is missing, wait for what others encode, publish."""
    config = _config(context)
    torch.set_num_threads(device.cpu_threads(1))
    shards = plan(
        clips.read(context.workspace, artifact_folder(Stage.PREPARE, config.prepare_key)),
        per_shard=config.settings.clips_per_shard,
    )
    encoders = _encoders(config)
    _encode_all(context, shards=shards, encoders=encoders, ttl=ttl)
    manifest = _publish(context, shards=shards, encoders=encoders, ttl=ttl)
    return _termination(context, shards=shards, manifest=manifest)


def _encoders(config: FeaturesConfig) -> Encoders | MockEncoders:
    dtype = DTYPES[config.settings.dtype]
    if config.dataset.format is DatasetFormat.MOCK:
        return MockEncoders(config.model, dtype=dtype)
    return Encoders(
        fetch(config.weights, "vae", "text_encoder", "tokenizer", *(IMAGE if config.task.images else ())),
        device=device.find().device,
        dtype=dtype,
        text_length=config.model.text_length,
    )


def _config(context: Context) -> FeaturesConfig:
    assert isinstance(context.config, FeaturesConfig)
    return context.config


def _encode_all(context: Context, *, shards: list[ShardPlan], encoders: Encoders | MockEncoders, ttl: float) -> None:
    """Fill every shard that nobody else fills, until all are done."""
    config = _config(context)
    board = Board(context, shards)
    route = order(len(shards), worker=context.worker, workers=config.settings.workers)
    pending = [index for index in route if not board.has(index)]
    if not pending:
        return
    known = reuse.Reuse.search(
        context.workspace, encoder=config.encoder_key, keys={clip.key for i in pending for clip in shards[i].clips}
    )
    encoder = ShardEncoder(context=context, encoders=encoders, known=known, on_clip=board.report)
    while pending:
        left = [index for index in pending if not _fill(context, shards[index], encoder=encoder, board=board, ttl=ttl)]
        context.check_interrupted()
        if len(left) == len(pending):
            context.interrupted.wait(POLL_SECONDS)
        board.refresh()
        board.report()
        pending = [index for index in left if not board.has(index)]


def _fill(context: Context, shard: ShardPlan, *, encoder: ShardEncoder, board: Board, ttl: float) -> bool:
    """Encode one shard, if it is free; whether it is done."""
    context.check_interrupted()
    sidecar = f"{context.folder}/{sidecar_name(shard.name)}"
    if context.workspace.exists(sidecar):
        return True
    claim = try_claim(context.workspace, f"{context.claim}/{shard.name}", holder=context.holder, ttl=ttl)
    if claim is None:
        return False
    with claim:
        if context.workspace.exists(sidecar):
            return True
        try:
            encoder.encode(shard, claim=claim)
        except ClaimLostError as error:
            logger.warning("%s", error)
            return False
    board.refresh()
    return True


class Board:
    """How many clips of the artifact are done, whoever did them."""

    def __init__(self, context: Context, shards: list[ShardPlan]) -> None:
        self._context = context
        self._shards = shards
        self._total = sum(len(shard.clips) for shard in shards)
        self._done: frozenset[int] = frozenset()
        self.refresh()

    def has(self, index: int) -> bool:
        """Whether a shard was done when the board was last refreshed."""
        return index in self._done

    def refresh(self) -> None:
        """See which sidecars are there."""
        names = {path.rpartition("/")[2] for path in self._context.workspace.list(self._context.folder)}
        self._done = frozenset(i for i, shard in enumerate(self._shards) if sidecar_name(shard.name) in names)

    def report(self, current: int = 0) -> None:
        """Report, with so many clips of the present shard."""
        done = sum(len(self._shards[index].clips) for index in self._done) + current
        metrics = {"shards": len(self._done), "total_shards": len(self._shards)}
        self._context.progress.report(done=min(done, self._total), total=self._total, metrics=metrics)


def _publish(
    context: Context, *, shards: list[ShardPlan], encoders: Encoders | MockEncoders, ttl: float
) -> artifact.Manifest:
    """Write what belongs to the folder as a whole, and declare it complete; one worker does it."""
    workspace, folder = context.workspace, context.folder
    claim = wait_or_claim(
        workspace,
        f"{context.claim}/publish",
        holder=context.holder,
        done=lambda: artifact.published(workspace, folder) is not None,
        interrupted=context.interrupted,
        ttl=ttl,
        moved=context.progress.moved,
    )
    if claim is not None:
        with claim:
            # Every shard is in place, so whatever is half written was left by a worker that was killed.
            workspace.sweep(folder)
            sidecars = _sidecars(context, shards)
            manifest = _manifest(context, sidecars)
            if not workspace.exists(f"{folder}/{EMPTY_TEXT}"):
                workspace.create(f"{folder}/{EMPTY_TEXT}", dump_tensor(encoders.text("")))
            for name, data in energon.metadata(sidecars, identity=manifest.key).items():
                workspace.write(f"{folder}/{name}", data)
            files = artifact.sizes(workspace, folder)
            artifact.publish(workspace, folder, manifest.model_copy(update={"files": files}))
    winner = artifact.published(workspace, folder)
    if winner is None:
        raise StageError(Exit.STORAGE, f"{workspace.uri(folder)} was deleted while it was made; run the job again")
    return winner


def _sidecars(context: Context, shards: list[ShardPlan]) -> list[Sidecar]:
    return [
        Sidecar.model_validate_json(context.workspace.read(f"{context.folder}/{sidecar_name(shard.name)}"))
        for shard in shards
    ]


def _manifest(context: Context, sidecars: list[Sidecar]) -> artifact.Manifest:
    config = _config(context)
    quarantined = {key: reason for sidecar in sidecars for key, reason in sidecar.quarantined.items()}
    counts = {
        "clips": sum(len(sidecar.clips) for sidecar in sidecars),
        "shards": len(sidecars),
        "encoded": sum(len(sidecar.encoded) for sidecar in sidecars),
        "reused": sum(len(sidecar.reused) for sidecar in sidecars),
        "quarantined": len(quarantined),
    }
    if not counts["clips"]:
        key, reason = next(iter(quarantined.items()), ("none", "the manifest of clips is empty"))
        raise StageError(Exit.DATA, f"no clip could be read; the first, {key}: {reason}")
    return artifact.Manifest(
        stage=Stage.FEATURES,
        key=config.key,
        job=f"{config.job.namespace}/{config.job.name}",
        counts=counts,
        details={
            reuse.ENCODER: config.encoder_key,
            reuse.SHARDS: [sidecar.shard for sidecar in sidecars],
            "prepare": config.prepare_key,
            "dtype": config.settings.dtype.value,
            "task": config.task.value,
        },
    )


def _termination(context: Context, *, shards: list[ShardPlan], manifest: artifact.Manifest) -> Termination:
    """The end, with what this job's own workers did; the rest of the clips is `skipped`."""
    mine = f"{context.config.job.uid}/"
    own = [sidecar for sidecar in _sidecars(context, shards) if sidecar.holder.startswith(mine)]
    encoded, reused = (sum(len(getattr(sidecar, name)) for sidecar in own) for name in ("encoded", "reused"))
    counts = {
        **manifest.counts,
        "encoded": encoded,
        "reused": reused,
        "skipped": manifest.counts["clips"] - encoded - reused,
    }
    return artifact.success(
        context.workspace, context.folder, manifest.model_copy(update={"counts": counts})
    ).model_copy(update={"digest": manifest.digest})
