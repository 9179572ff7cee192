# SPDX-License-Identifier: Apache-2.0
"""The OCI folder that hands images over: one store of layers for all, each kept once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REF_NAME = "org.opencontainers.image.ref.name"


def digests(folder: Path) -> dict[str, str]:
    """Image names and their manifests' digests; an image with a part missing is left out."""
    index = folder / "index.json"
    if not index.exists():
        return {}
    return {
        entry["annotations"][REF_NAME]: entry["digest"]
        for entry in json.loads(index.read_text())["manifests"]
        if all(_blob(folder, digest).exists() for digest in parts(entry["digest"], read=_reader(folder)))
    }


def keep(folder: Path, names: set[str]) -> int:
    """Forget every image but `names`, delete the layers that none of them has; returns the bytes set free."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    index["manifests"] = [entry for entry in index["manifests"] if entry["annotations"][REF_NAME] in names]
    wanted = set[str]()
    for entry in index["manifests"]:
        wanted |= parts(entry["digest"], read=_reader(folder))
    # The index first: a crash between the two leaves a layer too many, never one too few.
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(index))
    scratch.replace(path)
    freed = 0
    for blob in (folder / "blobs" / "sha256").iterdir():
        if f"sha256:{blob.name}" not in wanted:
            freed += blob.stat().st_size
            blob.unlink()
    return freed


def parts(manifest: str, *, read: Callable[[str], Mapping[str, Any] | None]) -> set[str]:
    """The digests that make up one image: its manifest, configuration and layers."""
    content = read(manifest)
    if content is None:
        return {manifest}
    return {manifest, content["config"]["digest"], *(layer["digest"] for layer in content["layers"])}


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "/")


def _reader(folder: Path) -> Callable[[str], Mapping[str, Any] | None]:
    def read(digest: str) -> Mapping[str, Any] | None:
        path = _blob(folder, digest)
        return json.loads(path.read_text()) if path.exists() else None

    return read
