# SPDX-License-Identifier: Apache-2.0
"""`python -m kinema_stage.gc --config FILE`: frees folders of a workspace that no job refers to.

The last line of stdout is a `GarbageResult` as JSON. Who runs it says which folders are referred to: a stage cannot ask
the API server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.garbage import Found, GarbageConfig, GarbageResult, Removal, choose
from kinema_stage import termination
from kinema_stage.artifact import MANIFEST
from kinema_stage.workspace import Workspace, local_path, open_workspace

logger = logging.getLogger(__name__)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="kinema-gc", description="Free what no job refers to.")
    parser.add_argument("--config", type=Path, required=True)
    path = parser.parse_args().config
    try:
        result = collect(read(path))
    except (StageError, OSError) as error:
        end = termination.failure(error, workspace=None)
        print(f"gc: {end.message}", file=sys.stderr)
        termination.write(end)
        sys.exit(end.code)
    verb = "would free" if result.dry_run else "freed"
    message = f"{verb} {len(result.removed)} folders, {result.size} bytes; {result.kept} stay"
    termination.write(Termination(code=Exit.OK, reason="Succeeded", message=message))
    print(result.model_dump_json(by_alias=True))


def read(path: Path) -> GarbageConfig:
    """The config in a file.

    Raises:
        StageError: it cannot be read or is not valid.
    """
    try:
        return GarbageConfig.stored(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise StageError(Exit.USER, f"cannot read the config {path}: {error}") from None


def collect(config: GarbageConfig, *, now: float | None = None) -> GarbageResult:
    """Free what may go, and say what went.

    Raises:
        StageError: the workspace is no folder, or is not there.
    """
    if not config.storage.uri.startswith("file://"):
        raise StageError(
            Exit.USER,
            f"{config.storage.uri}: this version collects workspaces on volumes only",
        )
    root = local_path(config.storage.uri)
    if not root.is_dir():
        raise StageError(Exit.USER, f"storage.uri: {root} is no folder")
    workspace, at = open_workspace(config.storage), time.time() if now is None else now
    found = list(scan(root))
    going = _choose(config, found, at)
    removed = going if config.dry_run else [item for item in going if _remove(workspace, root, config, item, at)]
    return GarbageResult(removed=removed, kept=len(found) - len(removed), dry_run=config.dry_run)


def _choose(config: GarbageConfig, found: list[Found], now: float) -> list[Removal]:
    return choose(found, keep=config.keep, runs=config.runs, min_age_seconds=config.min_age_seconds, now=now)


def _remove(workspace: Workspace, root: Path, config: GarbageConfig, item: Removal, now: float) -> bool:
    """Delete a folder unless somebody has begun to use it since the listing."""
    seen = look(root, item.folder)
    if seen is None or not _choose(config, [seen], now):
        return False
    workspace.delete(item.folder)
    logger.info("removed %s: %s", item.folder, item.why)
    return True


def scan(root: Path) -> Iterator[Found]:
    """Artifacts, finished or not, and private folders."""
    for pattern in ("artifacts/*/*", "jobs/*/*"):
        for path in sorted(root.glob(pattern)):
            if path.is_dir() and (seen := look(root, path.relative_to(root).as_posix())) is not None:
                yield seen


def look(root: Path, folder: str) -> Found | None:
    """What is known of a folder; None when it is gone."""
    place = root / folder
    times, size = _walk(place)
    if not times:
        return None
    claims, _ = _walk(root / "claims" / folder)
    manifest = place / MANIFEST
    return Found(
        folder=folder,
        size=size,
        newest=max(times),
        published=manifest.is_file(),
        prepare=_parent(manifest),
        claimed=max(claims, default=None),
    )


def _walk(folder: Path) -> tuple[list[float], int]:
    """Times of a folder and all that is in it, and the bytes of its files."""
    times: list[float] = []
    size = 0
    for path in (folder, *folder.rglob("*")):
        # Others write and delete meanwhile.
        with contextlib.suppress(FileNotFoundError):
            stat = path.lstat()
            times.append(stat.st_mtime)
            size += 0 if path.is_dir() else stat.st_size
    return times, size


def _parent(manifest: Path) -> str | None:
    """The prepare key that a manifest names.

    Raises:
        StageError: the manifest cannot be read: what it refers to would go unprotected.
    """
    try:
        details = json.loads(manifest.read_bytes()).get("details", {})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError):
        raise StageError(Exit.STORAGE, f"{manifest} is no manifest; delete its folder, or mend it") from None
    key = details.get("prepare") if isinstance(details, dict) else None
    return key if isinstance(key, str) else None


if __name__ == "__main__":
    main()
