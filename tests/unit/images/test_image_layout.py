# SPDX-License-Identifier: Apache-2.0
"""The folder that hands images over."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from kinema_images import layout


class Folder:
    """An OCI folder in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifests: list[dict[str, Any]] = []
        (path / "blobs" / "sha256").mkdir(parents=True)

    def blob(self, data: bytes) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / "sha256" / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    def image(self, name: str, *layers: bytes) -> str:
        manifest = {"config": self.blob(name.encode()), "layers": [self.blob(layer) for layer in layers]}
        entry = self.blob(json.dumps(manifest).encode())
        self.manifests.append({**entry, "annotations": {layout.REF_NAME: name}})
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.manifests}))
        return str(entry["digest"])

    def has(self, data: bytes) -> bool:
        return (self.path / "blobs" / "sha256" / hashlib.sha256(data).hexdigest()).exists()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "oci")


def test_no_folder_has_no_images(tmp_path: Path) -> None:
    assert layout.digests(tmp_path / "none") == {}


def test_images_are_found_by_name(folder: Folder) -> None:
    one, two = folder.image("one:1", b"base"), folder.image("two:1", b"base", b"more")
    assert layout.digests(folder.path) == {"one:1": one, "two:1": two}


def test_an_image_without_one_of_its_layers_is_not_there(folder: Folder) -> None:
    folder.image("one:1", b"base")
    folder.image("two:1", b"base", b"more")
    (folder.path / "blobs" / "sha256" / hashlib.sha256(b"more").hexdigest()).unlink()
    assert set(layout.digests(folder.path)) == {"one:1"}


def test_replaced_images_go_and_shared_layers_stay(folder: Folder) -> None:
    folder.image("one:1", b"base", b"old")
    folder.image("one:2", b"base", b"new")
    freed = layout.keep(folder.path, {"one:2"})
    assert set(layout.digests(folder.path)) == {"one:2"}
    assert folder.has(b"base")
    assert folder.has(b"new")
    assert not folder.has(b"old")
    assert freed > len(b"old")


def test_keeping_all_frees_nothing(folder: Folder) -> None:
    folder.image("one:1", b"base")
    assert layout.keep(folder.path, {"one:1"}) == 0
    assert set(layout.digests(folder.path)) == {"one:1"}
