# SPDX-License-Identifier: Apache-2.0
"""An API server in a thread: lists, watches, patches and logs over real HTTP, and a kubeconfig that leads to it."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from kinema_kube.resources import VIDEO_TRAINING_JOBS, Resource

Raw = dict[str, Any]
TOKEN = "a-token"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Raw


Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


@dataclass
class FakeApi:
    """Objects by path; what a test puts in is what requests find, and what watches tell."""

    objects: dict[str, Raw] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    """The log of a container, by `namespace/pod`."""
    requests: list[Request] = field(default_factory=list)
    hooks: list[Callable[[Request], Answer | None]] = field(default_factory=list)
    """The first that answers wins."""
    denied: set[tuple[str, str]] = field(default_factory=set)
    """Verb and plural that a SelfSubjectAccessReview says no to."""
    watchers: list[tuple[str, asyncio.Queue[Raw | None]]] = field(default_factory=list)
    on_watch: list[Callable[[], object]] = field(default_factory=list)
    """What happens once somebody watches, one a watch."""
    url: str = ""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _version: int = 0

    def put(self, resource: Resource, found: Raw, *, kind: str = "MODIFIED") -> Raw:
        """Store an object; it gets a uid and a resource version, and watchers see it."""
        metadata = found["metadata"]
        path = resource.path(namespace=metadata.get("namespace"), name=metadata["name"])
        self._version += 1
        before = self.objects.get(path, {}).get("metadata", {})
        full = {
            **copy.deepcopy(found),
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "uid": before.get("uid") or str(uuid.uuid4()),
                "creationTimestamp": "2026-11-22T06:00:00Z",
                **metadata,
                "resourceVersion": str(self._version),
            },
        }
        self.objects[path] = full
        self._tell({"type": kind, "object": full}, resource.path(namespace=metadata.get("namespace")))
        return full

    def job(self, name: str = "wan", namespace: str = "team", **parts: Any) -> Raw:
        """Store a job."""
        return self.put(VIDEO_TRAINING_JOBS, {"metadata": {"name": name, "namespace": namespace}, **parts})

    def remove(self, resource: Resource, name: str, namespace: str) -> None:
        """Delete an object."""
        gone = self.objects.pop(resource.path(namespace=namespace, name=name))
        self._version += 1
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell({"type": "DELETED", "object": gone}, resource.path(namespace=namespace))

    def end_watches(self, event: Raw | None = None) -> None:
        """End every watch, after an event if one is given."""
        for _, queue in list(self.watchers):
            if event is not None:
                self.loop.call_soon_threadsafe(queue.put_nowait, event)
            self.loop.call_soon_threadsafe(queue.put_nowait, None)

    def sent(self, method: str, part: str = "") -> list[Request]:
        """Requests of a method whose path holds `part`."""
        return [request for request in self.requests if request.method == method and part in request.path]

    def _tell(self, event: Raw, collection: str) -> None:
        for path, queue in list(self.watchers):
            if path == collection:
                self.loop.call_soon_threadsafe(queue.put_nowait, event)

    async def handle(self, incoming: web.Request) -> web.StreamResponse:
        raw = await incoming.read()
        request = Request(
            method=incoming.method,
            path=incoming.path,
            query=dict(incoming.query),
            headers={key.lower(): value for key, value in incoming.headers.items()},
            body=json.loads(raw) if raw else {},
        )
        self.requests.append(request)
        for hook in self.hooks:
            answer = hook(request)
            if answer is not None:
                code, body, *headers = answer
                if isinstance(body, bytes):
                    return web.Response(body=body, status=code)
                return web.json_response(body, status=code, headers=headers[0] if headers else None)
        if request.query.get("watch"):
            return await self._watch(incoming, request)
        if request.path.endswith("/log"):
            return self._log(request)
        code, body = self._answer(request)
        return web.json_response(body, status=code)

    def _answer(self, request: Request) -> tuple[int, Any]:
        if request.path.endswith("/selfsubjectaccessreviews") and request.method == "POST":
            wanted = request.body["spec"]["resourceAttributes"]
            plural = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
            return 201, {"status": {"allowed": (wanted["verb"], plural) not in self.denied}}
        if request.method == "POST":
            return self._create(request)
        if request.path in self.objects:
            return self._one(request)
        collection = [found for path, found in self.objects.items() if _collection(path, request.path)]
        if request.method == "GET" and (collection or _is_collection(request.path)):
            chosen = [found for found in collection if _selected(found, request.query)]
            return 200, {"metadata": {"resourceVersion": str(self._version)}, "items": chosen}
        *_, plural, name = request.path.split("/")
        return 404, status(404, "NotFound", f'{plural} "{name}" not found', details={"name": name, "kind": plural})

    def _one(self, request: Request) -> tuple[int, Any]:
        found = self.objects[request.path]
        if request.method == "PATCH":
            version = request.body.get("metadata", {}).get("resourceVersion")
            if version and version != found["metadata"]["resourceVersion"]:
                return 409, status(409, "Conflict", "the object has been modified")
            self._version += 1
            merged = _merge(found, request.body)
            merged["metadata"]["resourceVersion"] = str(self._version)
            if "spec" in request.body:
                merged["metadata"]["generation"] = merged["metadata"].get("generation", 0) + 1
            self.objects[request.path] = merged
            self._tell({"type": "MODIFIED", "object": merged}, request.path.rpartition("/")[0])
            return 200, merged
        if request.method == "DELETE":
            return 200, self.objects.pop(request.path)
        return 200, found

    def _create(self, request: Request) -> tuple[int, Any]:
        name = request.body["metadata"]["name"]
        path = f"{request.path}/{name}"
        if path in self.objects:
            return 409, status(409, "AlreadyExists", f'"{name}" already exists', details={"name": name})
        self._version += 1
        metadata = {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": "2026-11-22T06:00:00Z",
            **request.body["metadata"],
            "resourceVersion": str(self._version),
        }
        made = {**request.body, "metadata": metadata}
        if request.query.get("dryRun") != "All":
            self.objects[path] = made
            self._tell({"type": "ADDED", "object": made}, request.path)
        return 201, made

    async def _watch(self, incoming: web.Request, request: Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(incoming)
        queue: asyncio.Queue[Raw | None] = asyncio.Queue()
        entry = (request.path, queue)
        self.watchers.append(entry)
        if self.on_watch:
            threading.Thread(target=self.on_watch.pop(0), daemon=True).start()
        try:
            while (event := await queue.get()) is not None:
                if event["type"] == "ERROR" or _selected(event["object"], request.query):
                    await response.write(json.dumps(event).encode() + b"\n")
        except ConnectionResetError:
            pass
        finally:
            self.watchers.remove(entry)
        return response

    def _log(self, request: Request) -> web.Response:
        parts = request.path.split("/")
        key = f"{parts[4]}/{parts[6]}"
        if key not in self.logs:
            return web.json_response(status(404, "NotFound", f'pods "{parts[6]}" not found'), status=404)
        lines = self.logs[key].splitlines()
        tail = request.query.get("tailLines")
        return web.Response(text="".join(f"{line}\n" for line in (lines[-int(tail) :] if tail else lines)))


def _is_collection(path: str) -> bool:
    parts = path.strip("/").split("/")
    head = 2 if parts[0] == "api" else 3
    return len(parts) - head in (1, 3) and (len(parts) - head == 1 or parts[head] == "namespaces")


def _collection(path: str, wanted: str) -> bool:
    """Whether an object is of a collection: of its namespace, or of all."""
    parent = path.rpartition("/")[0]
    if parent == wanted:
        return True
    before, found, rest = parent.partition("/namespaces/")
    return bool(found) and "/" in rest and f"{before}/{rest.split('/')[1]}" == wanted


def _selected(found: Raw, query: dict[str, str]) -> bool:
    labels = found["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value.lstrip("="):
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        dotted, _, value = term.partition("=")
        place: Any = found
        for name in dotted.split("."):
            place = (place or {}).get(name)
        if str(place or "") != value:
            return False
    return True


def _merge(base: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def status(code: int, reason: str, message: str, **more: Any) -> Raw:
    """A Kubernetes Status."""
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, **more}


@contextmanager
def serving() -> Iterator[FakeApi]:
    """A fake that serves in a thread of its own."""
    fake = FakeApi()
    started: Future[None] = Future()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set_result(None)
        await stop.wait()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: fake.loop.run_until_complete(serve()), daemon=True)
    thread.start()
    started.result(timeout=10)
    try:
        yield fake
    finally:
        fake.end_watches()
        fake.loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)
        fake.loop.close()


def kubeconfig(folder: Path, url: str, *, namespace: str = "team", user: Raw | None = None) -> Path:
    """A kubeconfig that leads to a server."""
    path = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": user or {"token": TOKEN}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": namespace}}],
        "current-context": "fake",
    }
    path.write_text(yaml.safe_dump(content))
    return path
