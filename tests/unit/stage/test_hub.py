# SPDX-License-Identifier: Apache-2.0
"""Weights on a hub over HTTP: a small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import SecretRef, Weights
from kinema_api.names import ENV_SCRATCH, ENV_SECRETS
from kinema_operator import tls
from kinema_stage import pulse, weights
from kinema_stage.hub import HubSource
from kinema_stage.stages import check

from tests.s3.bucket import secret
from tests.unit.stage.support import TINY, captioned, check_config, context_of, make_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one folder as kinema/tiny; `kinema/gated` needs the token `good`."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.match(r"/api/models/(kinema/\w+)(?:/revision/(\w+))?$", path):
            return self._info(*found.groups())
        if re.match(r"/api/models/kinema/\w+/tree/", path):
            return self._tree()
        if found := re.match(r"/(kinema/\w+)/resolve/(\w+)/(.+)$", path):
            return self._file(*found.groups())
        if found := re.match(r"/cdn/(.+)$", path):
            return self._content(found[1])
        self._answer(404, {"X-Error-Code": "RepoNotFound"}, b"")

    do_HEAD = do_GET  # noqa: N815

    def _info(self, repository: str, revision: str | None) -> None:
        if repository not in ("kinema/tiny", "kinema/gated"):
            return self._answer(404, {"X-Error-Code": "RepoNotFound"}, b"")
        if revision not in (None, "main", COMMIT):
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        files = [path for path in sorted(self.server.root.rglob("*")) if path.is_file()]
        siblings: list[dict[str, Any]] = []
        for path in files:
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = {"rfilename": path.relative_to(self.server.root).as_posix(), "size": path.stat().st_size}
            lfs = {"sha256": sha, "size": path.stat().st_size, "pointerSize": 130}
            siblings.append({**entry, "blobId": sha[:40], **({"lfs": lfs} if path.suffix == ".safetensors" else {})})
        body = {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False, "downloads": 0}
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _tree(self) -> None:
        found = []
        for path in sorted(path for path in self.server.root.rglob("*") if path.is_file()):
            sha, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
            entry = {"type": "file", "path": path.relative_to(self.server.root).as_posix(), "size": size}
            lfs = {"oid": sha, "size": size, "pointerSize": 130}
            found.append({**entry, "oid": sha[:40], **({"lfs": lfs} if path.suffix == ".safetensors" else {})})
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def _file(self, repository: str, revision: str, name: str) -> None:
        if repository == "kinema/gated" and self.headers.get("Authorization") != "Bearer good":
            return self._answer(403, {"X-Error-Code": "GatedRepo"}, b"")
        path = self.server.root / name
        if revision != COMMIT or not path.is_file():
            return self._answer(404, {"X-Error-Code": "EntryNotFound"}, b"")
        if path.suffix != ".safetensors":
            return self._content(name)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        linked = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(path.stat().st_size)}
        self._answer(302, {**linked, "Location": f"{self.server.url}/cdn/{name}"}, b"")

    def _content(self, name: str) -> None:
        content = (self.server.root / name).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()[:40]}"'}
        if span := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(span[1]), int(span[2] or len(content) - 1)
            part = content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            return self._answer(206, headers, part)
        self._answer(200, headers, content)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent += len(body)
            self.wfile.write(body)


def encrypted(hub: Hub, folder: Path) -> bytes:
    """Let it speak TLS as localhost; the certificate of its authority."""
    now = datetime.now(tz=UTC)
    authority = tls.make_ca(now=now)
    leaf = tls.make_leaf(authority, dns_names=["localhost"], now=now)
    (folder / "leaf.pem").write_bytes(leaf.certificate + leaf.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem")
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    hub.url = f"https://localhost:{hub.server_port}"
    return authority.certificate


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv(ENV_SECRETS, str(tmp_path / "secrets"))
    monkeypatch.setenv(ENV_SCRATCH, str(tmp_path / "scratch"))
    running = Hub(make_weights(tmp_path / "hub", TINY))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def at(hub: Hub, repository: str = "tiny", **fields: Any) -> Weights:
    return Weights(uri=f"hf://kinema/{repository}", endpoint=hub.url, **fields)


def test_check_reads_headers_and_pins_the_branch(hub: Hub, tmp_path: Path) -> None:
    captioned(tmp_path / "data" / "a.mp4")
    config = check_config(tmp_path).model_copy(update={"weights": at(hub, revision="main")})
    end = check.run(context_of(config))
    assert end.pins == {"weights": COMMIT}
    pinned = config.model_copy(update={"weights": at(hub, revision=COMMIT)})
    assert check.run(context_of(pinned)).keys == end.keys


def test_what_is_fetched_is_whole_and_only_what_was_asked_for(hub: Hub) -> None:
    folder = weights.fetch(at(hub), "vae", "model_index.json")
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == ["model_index.json", "vae"]
    assert (folder / "vae/model.safetensors").read_bytes() == (hub.root / "vae/model.safetensors").read_bytes()


def test_a_large_file_that_comes_down_is_a_sign_of_life_all_the_while(hub: Hub) -> None:
    (hub.root / "vae/model.safetensors").write_bytes(bytes(35 << 20))
    beats: list[int] = []
    with pulse.heard(lambda: beats.append(1)):
        weights.fetch(at(hub), "vae/model.safetensors")
    assert len(beats) >= 4, "a beat for each 10 MB that the library reads at once"


def test_a_part_of_a_large_file_is_read_alone(hub: Hub) -> None:
    (hub.root / "vae/model.safetensors").write_bytes(bytes(1 << 20))
    source = HubSource(at(hub))
    hub.sent = 0
    assert source.read("vae/model.safetensors", end=8) == bytes(8)
    assert hub.sent == 8


def refused(place: Weights) -> str:
    with pytest.raises(StageError) as caught:
        weights.check(place, TINY)
    assert caught.value.code is Exit.USER
    return caught.value.message


def test_what_the_hub_refuses_is_said(hub: Hub, tmp_path: Path) -> None:
    assert "is given only to who accepted its licence; accept it at" in refused(at(hub, "gated"))
    secret(tmp_path / "secrets", "token", HF_TOKEN="good")
    weights.check(at(hub, "gated", secret_ref=SecretRef(name="token")), TINY)
    assert "there is no repository kinema/gone, or the HF_TOKEN" in refused(at(hub, "gone"))
    assert refused(at(hub, revision="v9")).startswith("model.weights.revision: kinema/tiny has no v9")
    assert "no Secret none in the namespace, or it has no HF_TOKEN" in refused(
        at(hub, secret_ref=SecretRef(name="none"))
    )


def test_the_secret_says_whom_a_mirror_is_certified_by(hub: Hub, tmp_path: Path) -> None:
    authority = encrypted(hub, tmp_path)
    with pytest.raises(StageError, match="CERTIFICATE_VERIFY_FAILED"):
        weights.check(at(hub), TINY)
    secret(tmp_path / "secrets", "mirror", **{"ca.crt": authority.decode()})
    folder = weights.fetch(at(hub, secret_ref=SecretRef(name="mirror")), "vae")
    assert (folder / "vae/model.safetensors").read_bytes() == (hub.root / "vae/model.safetensors").read_bytes()
