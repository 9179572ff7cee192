# SPDX-License-Identifier: Apache-2.0
"""Features that another artifact of the same encoder already holds: a grown dataset encodes only what is new."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from kinema_api.names import Stage
from kinema_stage.artifact import MANIFEST, published
from kinema_stage.workspace import Workspace
from kinema_trainer.data.shards import Record, Sidecar, read_parts, sidecar_name

logger = logging.getLogger(__name__)

ENCODER, SHARDS = "encoder", "shards"
"""Names in the details of a features manifest: the encoder's key, and the tar files."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where another artifact keeps a clip."""

    path: str
    """The tar file, relative to the workspace."""
    record: Record


class Reuse:
    """The clips of other artifacts, by key."""

    def __init__(self, workspace: Workspace, places: dict[str, Place]) -> None:
        self._workspace = workspace
        self._places = places

    @classmethod
    def search(cls, workspace: Workspace, *, encoder: str, keys: Collection[str]) -> Reuse:
        """Look through the published artifacts of an encoder for the wanted clips."""
        places: dict[str, Place] = {}
        for path in workspace.list(f"artifacts/{Stage.FEATURES}"):
            folder, _, name = path.rpartition("/")
            manifest = published(workspace, folder) if name == MANIFEST else None
            if manifest is None or manifest.details.get(ENCODER) != encoder:
                continue
            for shard in manifest.details.get(SHARDS, []):
                sidecar = Sidecar.model_validate_json(workspace.read(f"{folder}/{sidecar_name(shard)}"))
                places.update(
                    (record.key, Place(f"{folder}/{shard}", record)) for record in sidecar.records if record.key in keys
                )
        return cls(workspace, places)

    def parts(self, key: str) -> dict[str, bytes] | None:
        """The members of a clip's sample; None when no artifact has it, or it was removed meanwhile."""
        place = self._places.get(key)
        if place is None:
            return None
        try:
            folder, _, name = place.path.rpartition("/")
            return read_parts(self._workspace.fetch(folder, name) / name, place.record)
        except OSError as error:
            logger.warning("clip %s is encoded again: %s", key, error)
            return None
