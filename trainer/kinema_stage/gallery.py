# SPDX-License-Identifier: Apache-2.0
"""The videos of a run: those of the sample stage, and those made while training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from kinema_api.reading import FINAL, Sample, Samples
from kinema_stage.workspace import Workspace

LISTING = "samples.jsonl"
_FINAL, _TRAINING, _STEP = "samples", "training-samples", "step-"


def samples(workspace: Workspace, run: str) -> Samples:
    """Every video that a listing names and that is there, the newest round first."""
    found: list[Sample] = []
    for folder in (_FINAL, _TRAINING):
        sizes = workspace.sizes(f"{run}/{folder}")
        for path in sizes:
            if PurePosixPath(path).name == LISTING:
                found += _listed(workspace, path, sizes, run=run)
    return Samples(items=sorted(found, key=lambda sample: (-_order(sample.round), sample.file)))


def path_of(run: str, sample: Sample) -> str:
    """Where a video lies, relative to the workspace."""
    folder = _FINAL if sample.round == FINAL else f"{_TRAINING}/{_STEP}{int(sample.round):08d}"
    return f"{run}/{folder}/{sample.file}"


def _listed(workspace: Workspace, listing: str, sizes: dict[str, int], *, run: str) -> Iterator[Sample]:
    parts = PurePosixPath(listing).relative_to(run).parts
    name = FINAL if parts[0] == _FINAL else str(int(parts[1].removeprefix(_STEP)))
    for line in workspace.read(listing).splitlines():
        shot = json.loads(line)
        size = sizes.get(f"{PurePosixPath(listing).parent}/{shot['file']}")
        if size is not None:
            yield Sample(round=name, file=shot["file"], prompt=shot["prompt"], seed=shot["seed"], size=size)


def _order(name: str) -> float:
    return float("inf") if name == FINAL else int(name)
