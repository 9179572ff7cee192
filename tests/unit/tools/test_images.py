# SPDX-License-Identifier: Apache-2.0
"""Reading OCI archives and folders, and what of them is sent to containerd."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kinema_cluster import images
from kinema_cluster.errors import ClusterError
from kinema_cluster.images import REF_NAME, named_images, normalized, opened, reachable
from kinema_cluster.oci import IMAGE_NAME, write_scratch_image


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("kinema/stage:1", "docker.io/kinema/stage:1"),
        ("localhost/kinema/stage:1", "localhost/kinema/stage:1"),
        ("localhost:5000/stage", "localhost:5000/stage:latest"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00"),
    ],
)
def test_names_are_those_the_kubelet_looks_for(name: str, full: str) -> None:
    assert normalized(name) == full


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    content = tmp_path / "hello"
    content.write_text("hello")
    path = tmp_path / "image.tar"
    write_scratch_image(path, name="kinema.local/hello:1", files={"/bin/hello": content}, entrypoint=["/bin/hello"])
    return path


def test_an_archive_holds_what_its_digests_say(archive: Path) -> None:
    with opened(archive) as found:
        assert len(found.blobs) == 3
        for digest, blob in found.blobs.items():
            with blob.open() as file:
                data = file.read()
            assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert len(data) == blob.size
        assert list(named_images(found.index, None)) == ["kinema.local/hello:1"]


def test_the_same_files_are_the_same_image(archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    files = {"/bin/hello": tmp_path / "hello"}
    write_scratch_image(again, name="kinema.local/hello:1", files=files, entrypoint=["/bin/hello"])
    assert again.read_bytes() == archive.read_bytes()


def test_a_folder_with_several_images_gives_only_what_is_asked_for(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "oci"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    stale = folder / "blobs" / "sha256" / ("0" * 64)
    stale.write_text("a layer of yesterday")
    with opened(folder) as found:
        entries = named_images(found.index, None).values()
        assert f"sha256:{'0' * 64}" in found.blobs
        assert reachable(found, entries) == set(found.blobs) - {f"sha256:{'0' * 64}"}


def test_a_missing_layer_is_named(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "oci"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    manifest = json.loads((folder / "index.json").read_text())["manifests"][0]["digest"]
    (folder / "blobs" / "sha256" / manifest.removeprefix("sha256:")).unlink()
    with opened(folder) as found, pytest.raises(ClusterError, match=manifest):
        reachable(found, found.index["manifests"])


def entry(digest: str, **annotations: str) -> dict[str, Any]:
    return {"digest": digest, "mediaType": "x", "annotations": annotations}


def test_the_name_comes_from_the_archive_or_from_the_user() -> None:
    index = {"manifests": [entry("a", **{REF_NAME: "kinema/stage:1"})]}
    assert (
        named_images(index, None)["docker.io/kinema/stage:1"]["annotations"][IMAGE_NAME] == "docker.io/kinema/stage:1"
    )
    assert list(named_images(index, "other:2")) == ["docker.io/library/other:2"]
    with pytest.raises(ClusterError, match="--name"):
        named_images({"manifests": [entry("a")]}, None)


def test_an_image_that_lost_its_name_to_a_newer_one_is_left_out() -> None:
    index = {"manifests": [entry("old"), entry("new", **{REF_NAME: "localhost/a:1"})]}
    assert {name: found["digest"] for name, found in named_images(index, None).items()} == {"localhost/a:1": "new"}


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.add(__file__, "file")
    with pytest.raises(ClusterError, match="no OCI archive"), opened(other):
        pass
    (tmp_path / "text").write_text("text" * 1000)
    with pytest.raises(ClusterError, match="no uncompressed tar"), opened(tmp_path / "text"):
        pass


def test_only_missing_layers_are_sent(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(archive) as found:
        layer = max(found.blobs.values(), key=lambda blob: blob.size).digest
    sent = tmp_path / "sent.tar"
    script = tmp_path / "ctr"
    script.write_text(
        f"""#!/bin/sh
case "$*" in
  *"images list"*) echo "REF TYPE DIGEST" ;;
  *"content list"*) echo {layer} ;;
  *"images import"*) cat > {sent} ;;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert images.load(archive, socket=tmp_path / "socket", store=tmp_path) == ["kinema.local/hello:1"]
    with tarfile.open(sent) as tar:
        names = tar.getnames()
    assert "index.json" in names
    assert len([name for name in names if name.startswith("blobs/")]) == 2
    assert layer.replace(":", "/") not in " ".join(names)
