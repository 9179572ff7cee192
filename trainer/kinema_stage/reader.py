# SPDX-License-Identifier: Apache-2.0
"""`python -m kinema_stage.reader --config FILE`: shows what lies in a job's folder, over HTTP, until nobody asks.

It runs with the job's account and volumes, mounted for reading; the control plane itself never sees a workspace.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from kinema_api.base import Model
from kinema_api.exits import Exit, StageError
from kinema_api.names import CONFIG_PATH
from kinema_api.reading import POINTS, SERIES, ReaderConfig
from kinema_stage import gallery, logs
from kinema_stage.history import METRICS, Steps
from kinema_stage.workspace import Workspace, open_workspace

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_SAMPLE = re.compile(r"/samples/([a-z0-9]{1,16})/([A-Za-z0-9][A-Za-z0-9._-]{0,127})")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Reader:
    """What is read, and when it was last asked for."""

    def __init__(self, config: ReaderConfig, workspace: Workspace) -> None:
        self.config = config
        self.workspace = workspace
        self.steps = Steps(workspace, f"{config.run}/{METRICS}")
        self.lock = threading.Lock()
        """Held while `steps` is used."""
        self.asked_at = time.monotonic()

    @property
    def idle(self) -> float:
        """Seconds since the last request."""
        return time.monotonic() - self.asked_at


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="kinema-reader", description="Show what lies in a job's folder.")
    parser.add_argument("--config", type=Path, default=Path(CONFIG_PATH))
    logs.set_up("reader")
    try:
        config = read(parser.parse_args().config)
        serve(Reader(config, open_workspace(config.workspace)))
    except (StageError, OSError, ValueError) as error:
        print(f"reader: {error}", file=sys.stderr)
        sys.exit(Exit.USER)


def read(path: Path) -> ReaderConfig:
    """The config in a file.

    Raises:
        StageError: it cannot be read or is not valid.
    """
    try:
        return ReaderConfig.stored(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise StageError(Exit.USER, f"cannot read the config {path}: {error}") from None


def serve(reader: Reader) -> None:
    """Answer until nobody has asked for a while."""
    server = make_server(reader)
    threading.Thread(target=_end_when_idle, args=(reader, server), name="idle", daemon=True).start()
    print(f"reader: listening on port {server.server_address[1]}", flush=True)
    server.serve_forever()
    server.server_close()
    logger.info("nobody asked for %d s", reader.config.idle_seconds)


def make_server(reader: Reader) -> ThreadingHTTPServer:
    """The HTTP server of a reader, not yet started."""
    handler = type("BoundHandler", (Handler,), {"reader": reader})
    server = ThreadingHTTPServer(("", reader.config.port), handler)
    server.daemon_threads = True
    return server


def _end_when_idle(reader: Reader, server: ThreadingHTTPServer) -> None:
    while reader.idle < reader.config.idle_seconds:
        time.sleep(max(0.05, reader.config.idle_seconds - reader.idle))
    server.shutdown()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    reader: Reader
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Answer; what cannot be read is told as it is."""
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self._send(HTTPStatus.OK, b"ok", "text/plain")
            return
        if not self._may():
            self._fail(HTTPStatus.UNAUTHORIZED, "the token is not this reader's")
            return
        self.reader.asked_at = time.monotonic()
        try:
            self._route(url.path, parse_qs(url.query))
        except (OSError, ValueError) as error:
            logger.warning("%s: %s", url.path, error)
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"the workspace cannot be read: {error}")

    def log_message(self, format: str, *args: object) -> None:
        """Log like everything else."""
        logger.debug(format, *args)

    def _may(self) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(hashlib.sha256(token.encode()).hexdigest(), self.reader.config.token_digest)

    def _route(self, path: str, query: dict[str, list[str]]) -> None:
        config, workspace = self.reader.config, self.reader.workspace
        if path == "/history":
            names = [name for name in query.get("series", SERIES) if name in SERIES]
            points = int(query.get("points", [str(POINTS)])[0])
            with self.reader.lock:
                self.reader.steps.refresh()
                history = self.reader.steps.history(names, points=points)
            self._model(history)
        elif path == "/samples":
            self._model(gallery.samples(workspace, config.run))
        elif found := _SAMPLE.fullmatch(path):
            self._sample(*found.groups())
        else:
            self._fail(HTTPStatus.NOT_FOUND, f"nothing is at {path}")

    def _sample(self, name: str, file: str) -> None:
        run, workspace = self.reader.config.run, self.reader.workspace
        # Only what a listing names: a path is never made of what a request says alone.
        listed = gallery.samples(workspace, run).items
        sample = next((one for one in listed if (one.round, one.file) == (name, file)), None)
        if sample is None:
            self._fail(HTTPStatus.NOT_FOUND, f"there is no video {name}/{file}")
            return
        part = part_of(self.headers.get("Range", ""), size=sample.size)
        if part is None:
            headers = {"Content-Range": f"bytes */{sample.size}"}
            self._fail(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the file has {sample.size} bytes", headers)
            return
        start, end = part
        whole = (start, end) == (0, sample.size)
        self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        if not whole:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{sample.size}")
        self.end_headers()
        for data in _chunks(workspace, gallery.path_of(run, sample), start=start, end=end):
            self.wfile.write(data)

    def _model(self, model: Model) -> None:
        self._send(HTTPStatus.OK, model.model_dump_json(by_alias=True).encode(), "application/json")

    def _fail(self, code: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(code, json.dumps({"message": message}).encode(), "application/json", headers)

    def _send(self, code: HTTPStatus, body: bytes, media_type: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": media_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def part_of(header: str, *, size: int) -> tuple[int, int] | None:
    """First byte and end of the range that is asked for, the whole where none is; None for one that is not there."""
    found = _RANGE.fullmatch(header)
    if found is None or found.groups() == ("", ""):
        return 0, size
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    end = min(int(last) + 1, size) if last else size
    return (int(first), end) if int(first) < end else None


def _chunks(workspace: Workspace, path: str, *, start: int, end: int) -> Iterator[bytes]:
    while start < end and (data := workspace.read_range(path, start=start, end=min(start + _CHUNK, end))):
        start += len(data)
        yield data


if __name__ == "__main__":
    main()
