# SPDX-License-Identifier: Apache-2.0
"""Pushing reaches a registry, with the version and with the content's key as tags."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kinema_images import build, layout, paths

pytestmark = pytest.mark.usefixtures("images")
"""Building images installs skopeo where it is missing."""

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Registry(ThreadingHTTPServer):
    """As much of the OCI distribution protocol as a push needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content_length": "0", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        digest = self.path.rpartition("/")[2]
        blob = self.server.blobs.get(digest)
        self.answer(404) if blob is None else self.answer(200, content_length=str(len(blob)))

    def do_POST(self) -> None:
        self.answer(202, location=self.path + "one")

    def do_PATCH(self) -> None:
        data = self.body()
        self.server.blobs[f"sha256:{hashlib.sha256(data).hexdigest()}"] = data
        self.answer(202, location=self.path)

    def do_PUT(self) -> None:
        data = self.body()
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path):
            self.server.manifests[f"{found[1]}:{found[2]}"] = data
        self.answer(201)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> build.Built:
    """An image of one small layer, as a build leaves it."""
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path))
    blobs = paths.layout() / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media: str) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{name}", "size": len(data)}

    layer = b"\0" * 10240
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(layer, "application/vnd.oci.image.layer.v1.tar")],
    }
    entry = blob(json.dumps(manifest).encode(), MANIFEST)
    reference = "localhost/kinema/stage:0123456789abcdef"
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": {layout.REF_NAME: reference}}]}
    (paths.layout() / "index.json").write_text(json.dumps(index))
    (paths.layout() / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return build.Built(name="stage", reference=reference, digest=str(entry["digest"]))


def test_a_push_brings_every_part_under_both_tags(registry: Registry, image: build.Built) -> None:
    order = build.Order(push=f"{registry.address}/team", insecure=True)
    build.push(image, order, say=lambda _: None)
    version = build.version(paths.REPOSITORY)
    assert set(registry.manifests) == {f"team/stage:{version}", "team/stage:0123456789abcdef"}
    for pushed in registry.manifests.values():
        manifest = json.loads(pushed)
        for part in (manifest["config"], *manifest["layers"]):
            assert len(registry.blobs[part["digest"]]) == part["size"]
