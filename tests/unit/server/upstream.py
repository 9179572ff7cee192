# SPDX-License-Identifier: Apache-2.0
"""The API server's watches and logs, told by a test; and a reader of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.unit.kube.fake import FakeKube, Request

JOBS = "/apis/kinema.dev/v1alpha1/namespaces/team/videotrainingjobs"


def job(name: str, version: int, **status: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"model": {"name": "wan2.1-t2v-1.3b"}}, "status": status}


@dataclass
class Watched:
    """The jobs of a namespace, and whoever watches them."""

    fake: FakeKube
    version: int = 10
    path: str = JOBS
    watchers: list[asyncio.Queue[bytes | None]] = field(default_factory=list)
    begun: int = 0
    """Watches that were begun."""
    _told: list[tuple[int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fake.streams.append(self._stream)
        self.show()

    def show(self, *jobs: dict[str, Any]) -> None:
        """What a list finds."""
        self.fake.objects[self.path] = {"metadata": {"resourceVersion": str(self.version)}, "items": list(jobs)}

    def tell(self, kind: str, obj: dict[str, Any]) -> None:
        """Tell every watcher, now or when it begins with an earlier version."""
        line = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
        if "metadata" in obj:
            self._told.append((int(obj["metadata"]["resourceVersion"]), line))
        for queue in self.watchers:
            queue.put_nowait(line)

    def stop(self) -> None:
        """End every watch."""
        for queue in self.watchers:
            queue.put_nowait(None)

    def _stream(self, request: Request) -> AsyncIterator[bytes] | None:
        if request.path != self.path or request.query.get("watch") != "true":
            return None
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, line in self._told:
            if version > int(request.query["resourceVersion"]):
                queue.put_nowait(line)
        self.watchers.append(queue)
        self.begun += 1
        return self._lines(queue)

    async def _lines(self, queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
        try:
            while (line := await queue.get()) is not None:
                yield line
        finally:
            self.watchers.remove(queue)


@dataclass(frozen=True)
class Event:
    """An event as a browser sees it."""

    kind: str
    id: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


async def events(answer: httpx.Response) -> AsyncIterator[Event]:
    """The events of a stream; comments and times to wait are left out."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            key, _, value = line.partition(":")
            fields[key] = value.removeprefix(" ")
            continue
        if "data" in fields or "event" in fields:
            yield Event(fields.get("event", "message"), fields.get("id", ""), fields.get("data", ""))
        fields = {}


async def until(stream: AsyncIterator[Event], kind: str) -> list[Event]:
    """Events up to the first of a kind, which is the last."""
    found = []
    async with asyncio.timeout(20):
        async for event in stream:
            found.append(event)
            if event.kind == kind:
                return found
    raise AssertionError(f"no event {kind}; there were {[event.kind for event in found]}")
