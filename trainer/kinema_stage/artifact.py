# SPDX-License-Identifier: Apache-2.0
"""Artifacts: a folder counts once its manifest `_SUCCESS.json` is there, and never changes afterwards."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from kinema_api.base import Model
from kinema_api.exits import Exit, StageError, Termination
from kinema_api.names import Stage
from kinema_stage.workspace import Workspace

MANIFEST = "_SUCCESS.json"


def timestamp() -> str:
    """Now, in UTC, as RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Manifest(Model):
    """What an artifact holds."""

    stage: Stage
    """The stage that made it."""
    key: str
    """The key of a shared artifact; the job's uid for a private one."""
    job: str
    """namespace/name of the job that made it."""
    counts: dict[str, int] = Field(default_factory=dict)
    """What was done."""
    files: dict[str, int] = Field(default_factory=dict)
    """Bytes of each file, by its name relative to the folder."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Whatever else later stages want to know."""
    created_at: str = Field(default_factory=timestamp)
    """When it was published."""

    @property
    def digest(self) -> str:
        """Digest of the manifest as it is stored."""
        return hashlib.sha256(_encode(self)).hexdigest()


def _encode(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(by_alias=True, indent=1).encode() + b"\n"


def published(workspace: Workspace, folder: str) -> Manifest | None:
    """The manifest of an artifact; None while it is not complete.

    Raises:
        StageError: the manifest cannot be read.
    """
    try:
        data = workspace.read(f"{folder}/{MANIFEST}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise StageError(
            Exit.STORAGE,
            f"{workspace.uri(f'{folder}/{MANIFEST}')} is not a manifest of this version ({error.error_count()} errors);"
            f" delete the folder {folder} of the workspace and it is made again",
        ) from error


def publish(workspace: Workspace, folder: str, manifest: Manifest) -> Manifest:
    """Declare a folder complete.

    Returns:
        The manifest that counts: the given one, or that of another job which came first.
    """
    if workspace.create(f"{folder}/{MANIFEST}", _encode(manifest)):
        return manifest
    winner = published(workspace, folder)
    if winner is None:
        raise StageError(Exit.STORAGE, f"{workspace.uri(folder)} was deleted while it was published; run the job again")
    return winner


def sizes(workspace: Workspace, folder: str) -> dict[str, int]:
    """Bytes of every file of a folder but the manifest, by its name relative to the folder."""
    files = {path[len(folder) + 1 :]: size for path, size in workspace.sizes(folder).items()}
    return {name: size for name, size in files.items() if name != MANIFEST}


def seal(scratch: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a filled scratch folder, its files counted, before it is placed."""
    files = {path.relative_to(scratch).as_posix(): path.stat().st_size for path in scratch.rglob("*") if path.is_file()}
    sealed = manifest.model_copy(update={"files": dict(sorted(files.items()))})
    (scratch / MANIFEST).write_bytes(_encode(sealed))
    return sealed


def success(workspace: Workspace, folder: str, manifest: Manifest, *, reason: str = "Succeeded") -> Termination:
    """The termination message of a stage that ends with an artifact."""
    return Termination(
        code=Exit.OK,
        reason=reason,
        message=", ".join(f"{count} {name}" for name, count in manifest.counts.items()),
        artifact=workspace.uri(folder),
        digest=manifest.digest,
        counts=manifest.counts,
    )


def existing(workspace: Workspace, folder: str) -> Termination | None:
    """The end of a stage whose artifact another job or attempt has published; None when nobody has."""
    manifest = published(workspace, folder)
    if manifest is None:
        return None
    end = success(workspace, folder, manifest, reason="ArtifactExists")
    return end.model_copy(update={"message": f"made by {manifest.job} at {manifest.created_at}: {end.message}"})
