# SPDX-License-Identifier: Apache-2.0
"""An object store that fails now and then: a proxy before an HTTP server that breaks a share of the calls."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

FAULTS = ("503", "slow", "reset-before", "reset-after", "reset-in-body")
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class FaultyProxy:
    """A context manager; `url` is the address to call.

    Args:
        port: of the server on this machine.
        share: of calls that fail, from 0 to 1; may be changed at any time.
        seed: of the choice, which is made in the order in which calls arrive.
        faults: kinds to choose from. `reset-after` carries out the call and loses the answer.
        delay: seconds that a slow answer waits.
        host: this machine's address to listen on.
    """

    def __init__(
        self,
        port: int,
        *,
        share: float,
        seed: int = 0,
        faults: tuple[str, ...] = FAULTS,
        delay: float = 0.2,
        host: str = "127.0.0.1",
    ) -> None:
        self.share = share
        self.delay = delay
        self.counts: Counter[str] = Counter()
        """Calls by their fault; `ok` are those without."""
        self.status, self.content = 503, _BUSY
        """The answer to a call that is refused."""
        self._faults = faults
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        self.upstream = port
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server((host, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="faulty proxy", daemon=True)
        self.url = f"http://{host}:{self._server.server_port}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Let no call through for a while."""
        share, faults = self.share, self._faults
        self.share, self._faults = 1, ("reset-before",)
        try:
            yield
        finally:
            self.share, self._faults = share, faults

    def choose(self) -> str:
        """The fault of the next call, or `ok`."""
        with self._lock:
            fault = self._random.choice(self._faults) if self._random.random() < self.share else "ok"
            self.counts[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline:
                self.close_connection = True
            elif self.parse_request():
                self._pass_on()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.owner.choose()
        if fault == "reset-before":
            return self._reset()
        if fault in ("503", "refuse"):
            return self._answer(self.owner.status, [("Content-Type", "application/xml")], self.owner.content)
        status, headers, content = self._upstream(body)
        if fault == "slow":
            self.owner.stopped.wait(self.owner.delay)
        # An answer without a body can only be lost whole.
        if fault == "reset-after" or (fault == "reset-in-body" and len(content) < 2):
            return self._reset()
        if fault == "reset-in-body":
            self._answer(status, headers, content, keep=len(content) // 2)
            return self._reset()
        self._answer(status, headers, content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.upstream, timeout=60)
        try:
            skip = ("transfer-encoding", "content-length", "connection", "expect")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skip}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, keep: int | None = None) -> None:
        self.send_response_only(status)
        head = self.command == "HEAD"
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection") and (head or name.lower() != "content-length"):
                self.send_header(name, value)
        if not head and status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not head:
            self.wfile.write(content[:keep])
            self.wfile.flush()

    def _reset(self) -> None:
        """Cut the connection with RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
