# SPDX-License-Identifier: Apache-2.0
"""Images of one static binary, written as OCI archives without any build tool."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

IMAGE_NAME = "io.containerd.image.name"
USER = "65532:65532"


def write_scratch_image(path: Path, *, name: str, files: Mapping[str, Path], entrypoint: Sequence[str]) -> None:
    """An image `name` that holds `files` (path inside: path here) and nothing else, run as a user without rights."""
    layer = _layer(files)
    config = _json(
        {
            "architecture": architecture(platform.machine()),
            "os": "linux",
            "config": {"Entrypoint": list(entrypoint), "User": USER},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest) | {"annotations": {IMAGE_NAME: name}}
    index = _json({"schemaVersion": 2, "manifests": [entry]})
    members = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index}
    for blob in (config, manifest, layer):
        members["blobs/sha256/" + _digest(blob).removeprefix("sha256:")] = blob
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for member, data in members.items():
            _add(archive, member, data, mode=0o644)


def architecture(machine: str) -> str:
    """What OCI calls the machine that `uname -m` names."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _layer(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for inside, source in sorted(files.items()):
            _add(archive, inside.lstrip("/"), source.read_bytes(), mode=0o755)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, *, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = mode
    archive.addfile(info, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}
