# SPDX-License-Identifier: Apache-2.0
"""`kinema gc` on this machine: what local jobs refer to stays."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from kinema_api.garbage import GarbageConfig, GarbageResult
from kinema_api.inputs import Storage
from kinema_api.names import Stage, artifact_folder
from kinema_api.pipeline import SHARED_STAGES
from kinema_cli.errors import CommandError
from kinema_cli.records import Record


def folders_of(keys: Mapping[str, str]) -> list[str]:
    """The shared folders that a job's keys name."""
    return [artifact_folder(stage, keys[stage.value]) for stage in Stage if stage in SHARED_STAGES and stage in keys]


def keep_local(records: Iterable[Record], storage: Storage) -> list[str]:
    """The folders that local jobs of a workspace refer to."""
    mine = [record for record in records if same(record.storage, storage)]
    return sorted({folder for record in mine for folder in (record.folder, *folders_of(record.keys))})


def same(one: Storage, other: Storage) -> bool:
    """Whether two addresses are one workspace."""
    return (one.uri.rstrip("/"), one.endpoint) == (other.uri.rstrip("/"), other.endpoint)


def run_here(config: GarbageConfig, *, python: str) -> GarbageResult:
    """Run the collection as a process of this machine.

    Raises:
        CommandError: it failed, with its exit code.
    """
    with tempfile.TemporaryDirectory(prefix="kinema-gc-") as name:
        path = Path(name) / "gc.json"
        path.write_text(config.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
        done = subprocess.run(
            [python, "-m", "kinema_stage.gc", "--config", str(path)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it left no message"]
        raise CommandError(said[-1], code=done.returncode)
    return result_of(done.stdout)


def result_of(log: str) -> GarbageResult:
    """The result in the last line of a log.

    Raises:
        CommandError: there is none.
    """
    try:
        return GarbageResult.stored(json.loads(log.strip().splitlines()[-1]))
    except (IndexError, ValueError, ValidationError):
        raise CommandError(f"the collection left no result: {log[-500:]}", code=1) from None


def table(result: GarbageResult) -> str:
    """What goes or went, a line each, and the sum."""
    lines = [f"{size_text(item.size):>10}  {item.folder}  ({item.why})" for item in result.removed]
    verb = "would free" if result.dry_run else "freed"
    total = f"{verb} {size_text(result.size)} in {len(result.removed)} folders; {result.kept} stay"
    return "\n".join([*lines, total])


def size_text(size: int) -> str:
    """Bytes for people."""
    amount, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"
