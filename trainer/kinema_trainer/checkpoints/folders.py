# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: folders `step-XXXXXXXX`, complete once their manifest is there.

A checkpoint holds weights, both moments of AdamW and the moving average, split by process, and in its manifest the
step, the position in the data and the size and digest of each file. It holds no random state: every draw is a function
of seed and position, see `kinema_trainer.objectives.flow`. This module knows where they are;
`kinema_trainer.checkpoints.saver` what is in them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

from kinema_api.exits import Exit, StageError
from kinema_api.names import Stage
from kinema_stage.artifact import Manifest, published, sizes
from kinema_stage.workspace import Workspace
from kinema_trainer.checkpoints.digests import file_digest

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"step-(\d{8,})$")
DIGESTS = "digests"
"""The name of the files' digests among the details of a checkpoint's manifest."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps that were made."""
    consumed: int = 0
    """Samples that were used, over all processes."""


@dataclass(frozen=True, slots=True)
class Found:
    """A complete checkpoint."""

    folder: str
    position: Position
    manifest: Manifest


def folder_of(root: str, step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"{root}/step-{step:08d}"


def recorded(workspace: Workspace, root: str) -> list[Found]:
    """The checkpoints of a run that have a manifest, oldest first, whatever became of their files since."""
    manifests = ((step, folder, published(workspace, folder)) for step, folder in _folders(workspace, root))
    return [
        Found(folder, Position(step=step, consumed=int(manifest.details["consumed"])), manifest)
        for step, folder, manifest in manifests
        if manifest is not None
    ]


def complete(workspace: Workspace, root: str) -> list[Found]:
    """The complete checkpoints of a run, oldest first. One whose files do not have their recorded sizes is left out."""
    found: list[Found] = []
    for one in recorded(workspace, root):
        actual = sizes(workspace, one.folder)
        short = {name for name, size in one.manifest.files.items() if actual.get(name) != size}
        if short:
            tell_damage(one, short)
            continue
        found.append(one)
    return found


def damaged(workspace: Workspace, found: Found, *, rank: int = 0, world: int = 1) -> list[str]:
    """The files of a checkpoint whose content is not what was written, of this process's share of them.

    Args:
        workspace: where it lies.
        found: the checkpoint.
        rank: the share; together the shares of all processes are all files.
        world: the number of shares.
    """
    files = found.manifest.files
    digests: dict[str, str] = found.manifest.details.get(DIGESTS, {})
    # The largest first, so that shares are alike.
    shared = sorted(digests, key=lambda name: (-files[name], name))[rank::world]
    return [
        name for name in shared if file_digest(workspace, f"{found.folder}/{name}", size=files[name]) != digests[name]
    ]


def newest(workspace: Workspace, root: str) -> Found | None:
    """The newest complete checkpoint of a run."""
    return max(complete(workspace, root), key=lambda found: found.position.step, default=None)


def remove_rest(workspace: Workspace, root: str, keep: Found | None) -> None:
    """Remove what a broken run left: incomplete or half-deleted checkpoints, and all later than the resumed one."""
    workspace.sweep(root)
    good = {found.folder for found in complete(workspace, root)}
    for step, folder in _folders(workspace, root):
        if folder not in good or keep is None or step > keep.position.step:
            workspace.delete(folder)


def _folders(workspace: Workspace, root: str) -> list[tuple[int, str]]:
    """Step and folder of every checkpoint, complete or not, oldest first."""
    names = {path[len(root) + 1 :].split("/")[0] for path in workspace.list(root)}
    matches = ((_FOLDER.match(name), name) for name in names)
    return sorted((int(match[1]), f"{root}/{name}") for match, name in matches if match)


def require(workspace: Workspace, root: str) -> Found:
    """The newest complete and undamaged checkpoint of a run that must have one."""
    for found in reversed(complete(workspace, root)):
        assert found.manifest.stage is Stage.TRAIN
        spoilt = damaged(workspace, found)
        if not spoilt:
            return found
        tell_damage(found, spoilt)
    raise StageError(Exit.STORAGE, f"{workspace.uri(root)} has no complete checkpoint: run the train stage first")


def tell_damage(found: Found, names: Iterable[str]) -> None:
    """Say why a checkpoint is passed over."""
    logger.warning("%s is damaged (%s): an older checkpoint is used", found.folder, ", ".join(sorted(names)))
