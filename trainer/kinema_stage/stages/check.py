# SPDX-License-Identifier: Apache-2.0
"""check: validates dataset, weights and workspace, resolves keys, reports which artifacts exist."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid

from kinema_api import fit
from kinema_api.exits import Exit, StageError, Termination
from kinema_api.keys import Inputs, Keys, resolve
from kinema_api.layout import Sizes
from kinema_api.names import Stage, artifact_folder
from kinema_api.stage import CheckConfig
from kinema_stage import artifact, dataset, weights
from kinema_stage.context import Context
from kinema_stage.quarantine import summary
from kinema_stage.workspace import Workspace

STEPS = 4
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def run(context: Context) -> Termination:
    """The stage."""
    config = context.config
    assert isinstance(config, CheckConfig)
    sizes = fits(config)
    _step(context, 0)
    probe(context.workspace)
    _step(context, 1)
    pipeline = weights.check(config.weights, config.model)
    _step(context, 2)
    listing = dataset.read(config.dataset, images=dataset.wants_images(config.prepare.video))
    tags = dataset.tags(listing)
    counts = _count(listing, tags)
    _step(context, 3)
    transformer, vae, *text = (*weights.WEIGHTS, weights.TOKENIZER)
    keys = resolve(
        inputs=Inputs(
            dataset=dataset.fingerprint(listing, tags),
            transformer=pipeline.folder_tag(transformer),
            vae=pipeline.folder_tag(vae),
            text_encoder=pipeline.folder_tag(*text),
            image_encoder=pipeline.folder_tag(*weights.IMAGE) if config.task.images else "",
        ),
        model=config.model,
        task=config.task,
        dataset=config.dataset,
        prepare=config.prepare,
        features=config.features,
    )
    existing = _existing(context.workspace, keys)
    context.progress.report(done=STEPS, total=STEPS)
    return Termination(
        code=Exit.OK,
        reason="Succeeded",
        message=f"{counts['usable']} of {counts['videos']} videos have a caption; weights and workspace are in order"
        + _layout(config, sizes),
        counts=counts,
        keys={name: str(key) for name, key in keys.wire().items()},
        existing=existing,
        pins={"weights": pipeline.revision} if pipeline.revision else {},
    )


def fits(config: CheckConfig) -> Sizes | None:
    """The layout of the training on the devices that it is to get; no data is looked at. None where nobody asks.

    Raises:
        StageError: it cannot work.
    """
    if config.train is None or config.place is None:
        return None
    place = fit.Place(
        world=config.place.world,
        accelerator=config.place.accelerator,
        memory=config.place.memory,
        name=config.place.name,
    )
    try:
        return fit.check(config.model, config.train, config.prepare.video, place)
    except fit.FitError as error:
        raise StageError(Exit.USER, str(error)) from None


def _layout(config: CheckConfig, sizes: Sizes | None) -> str:
    """How additions are trained, whose layout follows what a device holds where none is named."""
    if config.train is None or sizes is None or not config.train.lora.enabled:
        return ""
    return f"; low-rank additions are trained in layout {sizes}"


def _step(context: Context, done: int) -> None:
    context.check_interrupted()
    context.progress.report(done=done, total=STEPS)


def _count(listing: dataset.Listing, tags: dict[str, str]) -> dict[str, int]:
    """Counts of the listing.

    Raises:
        StageError: not one video can be used.
    """
    usable = sum(item.video in tags for item in listing.usable)
    if not usable:
        problems = summary([item.problem for item in listing.items if item.problem is not None])
        unread = [item.video for item in listing.usable]
        missing = f"{len(unread)} cannot be opened (for instance {listing.source.place(unread[0])})" if unread else ""
        raise StageError(
            Exit.DATA,
            f"none of the {len(listing.items)} videos of the dataset can be used:"
            f" {'; '.join(part for part in (problems, missing) if part)}",
        )
    return {"videos": len(listing.items), "usable": usable}


def _existing(workspace: Workspace, keys: Keys) -> list[str]:
    folders = {
        Stage.PREPARE: artifact_folder(Stage.PREPARE, keys.prepare),
        Stage.FEATURES: artifact_folder(Stage.FEATURES, keys.features),
        Stage.CONVERT: artifact_folder(Stage.CONVERT, keys.convert),
    }
    found = {stage: folder for stage, folder in folders.items() if artifact.published(workspace, folder) is not None}
    for folder in found.values():
        # From now on the job counts on it, and a collection that began before does not know the job.
        workspace.renew(f"{folder}/{artifact.MANIFEST}")
    return [stage.value for stage in found]


def probe(workspace: Workspace) -> None:
    """Use every operation that later stages need.

    Raises:
        StageError: one of them does not work. What only the user can mend is the user's: nothing has been done yet
            that would be worth another attempt.
    """
    try:
        _probe(workspace)
    except StageError as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StageError(Exit.USER, error.message) from error
        raise
    except OSError as error:
        root = workspace.folder or workspace.uri()
        trouble = _trouble(error)
        if not trouble:
            raise StageError(Exit.STORAGE, f"storage.uri: {root} cannot be used: {error}; mend the volume") from error
        raise StageError(Exit.USER, f"storage.uri: {root} {trouble}") from error


def _probe(workspace: Workspace) -> None:
    root = workspace.folder or workspace.uri()
    path = f"probes/{uuid.uuid4().hex}"
    content = path.encode()
    try:
        workspace.write(path, content)
        created = workspace.create(f"{path}-link", content)
        again = workspace.create(f"{path}-link", b"")
        whole = workspace.read(path) == content and workspace.read(f"{path}-link") == content
    except OSError:
        # What one step left goes too; the first error is the one to tell of.
        with contextlib.suppress(OSError):
            _clear(workspace, path)
        raise
    _clear(workspace, path)
    if workspace.folder is None and created and again:
        raise StageError(
            Exit.USER,
            f"storage.endpoint: the store of {root} ignores If-None-Match, by which jobs agree on who is first; use one"
            " that does not, for instance AWS S3, or MinIO of 2024-11 or later",
        )
    if not (created and not again and whole):
        needs = "a file system with atomic hard links and" if workspace.folder else "a store with"
        raise StageError(
            Exit.STORAGE,
            f"storage.uri: {root} does not give back what was written; it needs {needs} consistent reads",
        )


def _clear(workspace: Workspace, path: str) -> None:
    workspace.delete(path)
    workspace.delete(f"{path}-link")


def _trouble(error: OSError) -> str:
    """What the user can mend; empty for what may pass by itself."""
    match error.errno:
        case number if number in _FULL:
            return "is full; free space or enlarge the volume"
        case errno.EROFS:
            return "is mounted read-only; mount it for reading and writing"
        case errno.EACCES | errno.EPERM if error.filename2 is None:
            return f"cannot be written by user {os.getuid()}, group {os.getgid()}; give it the folder, or set fsGroup"
        case errno.EPERM | errno.ENOTSUP | errno.EMLINK:
            return "has no hard links, by which jobs agree on who is first; use another volume"
        case _:
            return ""
