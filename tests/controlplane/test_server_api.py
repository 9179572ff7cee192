# SPDX-License-Identifier: Apache-2.0
"""The REST API on a real API server: who gets what, watches, actions, plans, and what a flood of posts does."""

from __future__ import annotations

import asyncio
import json
import ssl
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_server.app import create_app
from kinema_server.settings import ServerSettings

from tests.controlplane.test_server import ROOT, Cluster, Server, cluster, jobs_path, server

__all__ = ["cluster", "server"]

pytestmark = pytest.mark.controlplane

JOB = "/v1alpha1/namespaces/{namespace}/videotrainingjobs/{name}"
MEMORY_LIMIT = 250 << 20
WATCHED = (JOB, JOB.removesuffix("/{name}"), "/v1alpha1/videotrainingjobs")
VERBS = ["get", "list", "watch", "patch", "create"]


def routes() -> list[tuple[str, str]]:
    """Every documented operation but the posts of pods, which have tests of their own."""

    @asynccontextmanager
    async def nowhere() -> AsyncIterator[Any]:
        yield None

    paths = create_app(ServerSettings(), nowhere).openapi()["paths"]
    return [
        (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "progress" not in operation["tags"]
    ]


def ask(server: Server, method: str, path: str, token: str | None, namespace: str) -> httpx.Response:
    filled = path.format(namespace=namespace, name="wan", round="final", file="00-seed1.mp4")
    body: Any = {"spec": {}} if path.endswith("/plan") else None
    with server.client(token) as client:
        return client.request(method, filled, json=body)


@pytest.mark.parametrize(("method", "path"), [*routes(), *(("GET", f"{path}?watch=true") for path in WATCHED)])
def test_every_route_wants_a_token_and_a_right(cluster: Cluster, server: Server, method: str, path: str) -> None:
    namespace, other = cluster.namespace(), cluster.namespace()
    cluster.job(namespace)
    for token in (None, "garbage"):
        answer = ask(server, method, path, token, namespace)
        assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")
    answer = ask(server, method, path, cluster.account(other, may=VERBS), namespace)
    assert (answer.status_code, answer.json()["reason"]) == (403, "Forbidden")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("verb", "action"), [("get", "suspend"), ("patch", "suspend")])
def test_an_action_needs_every_verb(cluster: Cluster, server: Server, verb: str, action: str) -> None:
    namespace = cluster.namespace()
    cluster.job(namespace)
    answer = ask(server, "POST", f"{JOB}/{action}", cluster.account(namespace, may=[verb]), namespace)
    assert answer.status_code == 403


def test_actions_are_the_callers_own_changes(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    cluster.job(namespace)
    token = cluster.account(namespace, may=["get", "patch"])
    job = f"{jobs_path(namespace)}/wan"
    for action, field, expected in (
        ("suspend", "suspend", True),
        ("resume", "suspend", False),
        ("cancel", "cancel", True),
    ):
        answer = ask(server, "POST", f"{JOB}/{action}", token, namespace)
        assert (answer.status_code, answer.json()["name"]) == (200, "wan"), answer.text
        assert cluster.get(job)["spec"]["policy"][field] is expected
    managers = [entry["manager"] for entry in cluster.get(job)["metadata"]["managedFields"]]
    assert "kinema-server-action" in managers
    assert ask(server, "POST", f"{JOB}/retry", token, namespace).status_code == 409


def test_a_failed_job_is_retried_with_the_next_number(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    cluster.job(namespace)
    status = {"status": {"phase": "Failed", "retry": 3, "stages": [{"name": "train", "state": "Failed"}]}}
    cluster.plane.kubectl(
        "patch", "vtj", "wan", "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(status)
    )
    token = cluster.account(namespace, may=["get", "patch"])
    with server.client(token) as client:
        path = JOB.format(namespace=namespace, name="wan")
        assert client.post(f"{path}/retry", json={"stage": "train"}).status_code == 200
        assert client.post(f"{path}/retry", json={"stage": "train"}).status_code == 200
    asked = cluster.get(f"{jobs_path(namespace)}/wan")["spec"]["policy"]["retry"]
    assert asked == {"number": 4, "stage": "train"}
    rows = server.get(
        cluster.account(namespace, may=["list"]), f"/namespaces/{namespace}/videotrainingjobs?phase=Failed"
    )
    assert [row["name"] for row in rows.json()["items"]] == ["wan"]


def test_a_plan_creates_nothing_and_the_cluster_checks_it(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    manifest = yaml.safe_load((ROOT / "examples" / "wan-job.yaml").read_text())
    reader = {
        "metadata": {"name": f"pools-{namespace}"},
        "rules": [{"apiGroups": ["kinema.dev"], "resources": ["trainingpools"], "verbs": ["list"]}],
    }
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    cluster.create(f"{rbac}/clusterroles", reader)
    cluster.create(
        f"{rbac}/clusterrolebindings",
        {
            "metadata": reader["metadata"],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"pools-{namespace}"},
            "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"}],
        },
    )
    token = cluster.account(namespace, may=["create"])
    with server.client(token) as client:
        path = f"/v1alpha1/namespaces/{namespace}/plan"
        found = client.post(path, json=manifest).json()
        assert found["accepted"] or found["reason"] == "UnknownPool", found
        wrong = {**manifest, "spec": {**manifest["spec"], "storage": {"uri": "nowhere"}}}
        refused = client.post(path, json=wrong).json()
    assert (refused["accepted"], refused["reason"]) == (False, "Invalid")
    assert "storage.uri: write pvc://" in refused["message"]
    assert cluster.get(jobs_path(namespace))["items"] == []


async def _events(client: httpx.AsyncClient, path: str, last: str = "") -> AsyncIterator[tuple[str, str, str]]:
    headers = {"Last-Event-ID": last} if last else {}
    async with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
            else:
                if "event" in fields:
                    yield fields["event"], fields.get("id", ""), fields.get("data", "")
                fields = {}


WATCHERS, CHANGES = 200, 30
RATE, SECONDS = 1000, 15
"""Of a flood, in posts a second."""


def test_two_hundred_watchers_lose_no_event(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    cluster.job(namespace)
    token = cluster.account(namespace, may=["watch"])
    path = f"/v1alpha1/namespaces/{namespace}/videotrainingjobs?watch=true"
    context = ssl.create_default_context(cafile=str(server.folder / "ca.crt"))
    last = f"change-{CHANGES - 1}"

    def change(number: int) -> None:
        patch = {"status": {"message": f"change-{number}", "phase": "Running"}}
        cluster.plane.kubectl(
            "patch", "vtj", "wan", "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(patch)
        )

    async def read(client: httpx.AsyncClient, ready: asyncio.Semaphore, *, breaks: int) -> list[str]:
        heard: list[str] = []
        place, synced = "", False
        while True:
            async for kind, identity, data in _events(client, path, place):
                place = identity or place
                if kind == "synced" and not synced:
                    synced = True
                    ready.release()
                if kind == "modified":
                    heard.append(json.loads(data)["message"])
                    if heard[-1] == last:
                        return heard
                    if len(heard) == breaks:
                        break

    async def watch_all() -> list[list[str]]:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            base_url=server.url, verify=context, headers=headers, timeout=120, limits=limits
        ) as client:
            ready = asyncio.Semaphore(0)
            # Every third loses its connection after a few events, and goes on where it was.
            broken = (number % 7 + 1 if number % 3 == 0 else -1 for number in range(WATCHERS))
            readers = [asyncio.create_task(read(client, ready, breaks=breaks)) for breaks in broken]
            async with asyncio.timeout(120):
                for _ in readers:
                    await ready.acquire()
                for number in range(CHANGES):
                    await asyncio.to_thread(change, number)
                return await asyncio.gather(*readers)

    heard = asyncio.run(watch_all())
    expected = [f"change-{number}" for number in range(CHANGES)]
    assert [one for one in heard if one != expected] == []
    print(f"{WATCHERS} watchers heard {CHANGES} changes; server {memory_of(server) >> 20} MiB")
    assert memory_of(server) < MEMORY_LIMIT


def memory_of(server: Server) -> int:
    """Resident bytes of the server."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS"))


@dataclass(frozen=True, slots=True)
class Flood:
    """What came of posts that a pod sent as fast as it could, and of a user's reads meanwhile."""

    told: dict[int, int]
    """Answers by code."""
    reads: list[float]
    """Seconds of each read."""

    def __str__(self) -> str:
        rate = sum(self.told.values()) / SECONDS
        return f"{rate:.0f} posts a second: {self.told}; {len(self.reads)} reads, p99 {self.p99:.3f} s"

    @property
    def p99(self) -> float:
        """Of the reads, in seconds."""
        return statistics.quantiles(self.reads, n=100)[98]


@pytest.fixture(scope="module")
def flood(cluster: Cluster, server: Server) -> Flood:
    """`RATE` posts a second from a process of their own, for `SECONDS`."""
    namespace = cluster.namespace()
    token = cluster.token(namespace, pod=cluster.batch_job(cluster.job(namespace), "features"))
    reader = cluster.account(namespace, may=["list"])
    post = f"{JOB}/stages/features/attempts/1/progress".format(namespace=namespace, name="wan")
    with server.client(token) as client:
        assert client.post(post, content=b" " * (10 << 20)).status_code == 413
        assert client.post(post, content=b"{").status_code == 400
    arguments = (server.url, server.folder / "ca.crt", post, RATE, SECONDS)
    command = [sys.executable, "-m", "tests.controlplane.flood", *map(str, arguments)]
    url = f"/v1alpha1/namespaces/{namespace}/videotrainingjobs"
    with (
        server.client(reader) as client,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(token)
        process.stdin.close()
        seconds = []
        while process.poll() is None:
            started = time.monotonic()
            assert client.get(url).status_code == 200
            seconds.append(time.monotonic() - started)
        told = {int(code): count for code, count in json.loads(process.stdout.read()).items()}
    return Flood(told=told, reads=seconds)


def test_a_flood_of_posts_is_held_back_and_reads_go_on(flood: Flood, server: Server) -> None:
    assert set(flood.told) == {200, 429}, flood
    # 20 at once and 2 a second, whatever was sent.
    assert flood.told[200] <= 20 + 2 * (SECONDS + 1), flood
    assert flood.reads
    assert memory_of(server) < MEMORY_LIMIT


@pytest.mark.slow
def test_reads_are_quick_in_a_flood_of_a_thousand_posts_a_second(flood: Flood, server: Server) -> None:
    print(f"{flood}; server {memory_of(server) >> 20} MiB")
    assert sum(flood.told.values()) > RATE * SECONDS / 2, flood
    assert flood.p99 < 0.3, flood


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_page_of_ten_thousand_jobs_is_quick(cluster: Cluster, server: Server) -> None:
    namespace, count = cluster.namespace(), 10_000
    manifest = yaml.safe_load((ROOT / "examples" / "wan-job.yaml").read_text())
    path = VIDEO_TRAINING_JOBS.path(namespace=namespace)

    def make(number: int) -> None:
        metadata = {"name": f"job-{number:05d}-{uuid.uuid4().hex[:4]}", "namespace": namespace}
        cluster.create(path, {**manifest, "metadata": metadata})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(make, range(count)))
    reader = cluster.account(namespace, may=["list", "watch"])
    url = f"/v1alpha1/namespaces/{namespace}/videotrainingjobs"
    with server.client(reader) as client:
        seen, token, seconds = 0, "", []
        while True:
            started = time.monotonic()
            page = client.get(f"{url}?limit=100&continue={token}").json()
            seconds.append(time.monotonic() - started)
            seen += len(page["items"])
            token = page["next"]
            if not token:
                break
        assert seen == count
        p90 = statistics.quantiles(seconds, n=10)[8]
        print(f"a page of 100 of {count} jobs: median {statistics.median(seconds):.3f} s, p90 {p90:.3f} s")
        assert p90 < 0.2
        with client.stream("GET", f"{url}?watch=true") as answer:
            kinds = (line for line in answer.iter_lines() if line.startswith("event:"))
            assert sum(1 for _ in iter(lambda: next(kinds), "event: synced")) == count
    print(f"server {memory_of(server) >> 20} MiB")
    assert memory_of(server) < MEMORY_LIMIT
