# SPDX-License-Identifier: Apache-2.0
"""What the server shows of real pods and of a real workspace: logs, history, samples; and to whom."""

from __future__ import annotations

import base64
import io
import itertools
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from kinema_demo.install import NAMESPACE, install, values
from kinema_demo.install import namespace as namespace_object
from kinema_demo.kubectl import Kubectl, Object
from kinema_demo.workspace import Shell

from kinema_api.names import CONTAINER, Stage
from kinema_api.status import JobStatus, Phase

from tests.cluster.jobs import NO_RESULT, Job, Jobs
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

IDLE_SECONDS = 10
HOST = f"kinema-server.{NAMESPACE}.svc"
VIEWS = (
    "",
    "?watch=true",
    "/logs",
    "/logs?follow=true",
    "/history",
    "/samples",
    "/samples/final/00-seed0.mp4",
    "/events",
)


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event."""

    kind: str
    id: str
    data: str


@dataclass(frozen=True, slots=True)
class Views:
    """The server as somebody with a token sees it."""

    client: httpx.Client
    token: str | None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def get(
        self, job: Job, path: str = "", *, headers: Mapping[str, str] | None = None, **query: Any
    ) -> httpx.Response:
        """What a view of a job answers at once."""
        return self.client.get(
            path_of(job, path),
            params=query or None,
            headers={**self.headers, **(headers or {})},
            extensions={"sni_hostname": HOST},
        )

    def read(self, job: Job, path: str, *, headers: Mapping[str, str] | None = None, **query: Any) -> httpx.Response:
        """The same, once the pod that reads the workspace has started."""

        def answer() -> httpx.Response | None:
            found = self.get(job, path, headers=headers, **query)
            return None if found.status_code == 503 else found

        found = until(f"{path} of {job.name} is answered", answer, seconds=120, poll=1)
        assert found.status_code in (200, 206), found.text
        return found

    def events(self, job: Job, path: str = "", *, last: str = "", **query: Any) -> Iterator[Event]:
        """The events of a stream, until it ends or nobody takes more of them."""
        resume = {"Last-Event-ID": last} if last else {}
        with self.client.stream(
            "GET",
            path_of(job, path),
            params=query,
            headers={**self.headers, **resume},
            extensions={"sni_hostname": HOST},
        ) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                key, _, value = line.partition(":")
                if line:
                    fields[key] = value.removeprefix(" ")
                    continue
                if "event" in fields:
                    yield Event(fields["event"], fields.get("id", ""), fields.get("data", ""))
                fields = {}

    def lines(self, job: Job, *, count: int, last: str = "", **query: Any) -> list[Event]:
        """The next lines of a log that is followed."""
        events = self.events(job, "/logs", last=last, follow=True, stage="train", **query)
        return list(itertools.islice((event for event in events if event.kind == "line"), count))


def path_of(job: Job, path: str) -> str:
    return f"/v1alpha1/namespaces/{job.kubectl.namespace}/videotrainingjobs/{job.name}{path}"


@pytest.fixture(scope="module")
def client(kubectl: Kubectl, images: Mapping[str, str]) -> Iterator[httpx.Client]:
    """The installed server; from here on the pods that read workspaces wait for ten seconds only."""
    settings = {"server": {"settings": {"readerIdleSeconds": IDLE_SECONDS}}}
    install(kubectl, {**values(images), **settings})
    system = kubectl.within(NAMESPACE)
    secret = system.get("secret", "kinema-server-tls")
    assert secret is not None
    tls = ssl.create_default_context(cadata=base64.b64decode(secret["data"]["ca.crt"]).decode())
    until("the server of before is gone", lambda: not any(map(leaves, servers(system))), seconds=90)
    with system.popen("port-forward", "service/kinema-server", ":443") as forward:
        assert forward.stdout is not None
        port = int(forward.stdout.readline().split("127.0.0.1:")[1].split()[0])
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=tls, timeout=60, trust_env=False) as found:
            yield found
        forward.terminate()


def servers(system: Kubectl) -> list[Object]:
    return system.list("pods", labels={"app.kubernetes.io/component": "server"})


def leaves(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def viewer(kubectl: Kubectl) -> str:
    """The token of an account that may view its namespace."""
    account = {"kind": "ServiceAccount", "name": "viewer", "namespace": kubectl.namespace}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "viewer"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "viewer"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [account],
        },
    )
    return kubectl.run("create", "token", "viewer").strip()


@pytest.fixture(scope="module")
def views(client: httpx.Client, wan: Job) -> Iterator[Views]:
    """Somebody who may view the namespace; `wan` has succeeded."""
    wan.succeeded()
    found = Views(client, viewer(wan.kubectl))
    until("the right has come through", lambda: found.get(wan).status_code == 200, seconds=30)
    yield found
    wan.kubectl.run("delete", "rolebinding/viewer", "serviceaccount/viewer")


@pytest.fixture(scope="module")
def stranger(client: httpx.Client, kubectl: Kubectl) -> Iterator[Views]:
    """Somebody who may view another namespace."""
    other = kubectl.within("kinema-test-viewer")
    other.apply(namespace_object(other.namespace))
    yield Views(client, viewer(other))
    other.run("delete", "namespace", other.namespace, "--wait=false")


@pytest.fixture(scope="module")
def training(jobs: Jobs, wan: Job, shared: str) -> Iterator[Job]:
    """A job that trains on and on."""
    wan.succeeded()
    job = jobs.start("views", root=shared, stages={**NO_RESULT, "train": {"steps": 1_000_000}})
    job.running(Stage.TRAIN)

    def trains(status: JobStatus) -> bool:
        progress = status.progress
        return progress is not None and progress.stage is Stage.TRAIN and bool(progress.step)

    job.until("it trains", trains)
    yield job
    if job.kubectl.get("vtj", job.name):
        job.delete()


@pytest.mark.parametrize("path", VIEWS)
def test_nothing_is_shown_to_nobody_and_to_strangers(views: Views, stranger: Views, wan: Job, path: str) -> None:
    for token in (None, "nonsense"):
        answer = Views(views.client, token).get(wan, path)
        assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")
    answer = stranger.get(wan, path)
    assert (answer.status_code, answer.json()["reason"]) == (403, "Forbidden")
    assert wan.kubectl.namespace in answer.json()["detail"]


def test_a_log_is_that_of_kubectl(views: Views, wan: Job) -> None:
    whole = views.get(wan, "/logs", stage="train", tail=100_000)
    assert whole.headers["content-type"].startswith("text/plain")
    lines = whole.text.splitlines()
    assert len(lines) > 30, "a line for each step"
    assert lines == wan.kubectl.run("logs", "wan-train-1-master-0", "-c", CONTAINER).splitlines()
    assert views.get(wan, "/logs", stage="train", tail=5).text.splitlines() == lines[-5:]
    last = lines[-1][:40]
    assert views.get(wan, "/logs", stage="train", grep=last).text.splitlines() == [
        line for line in lines if last in line
    ]
    assert views.get(wan, "/logs", stage="train", since="7d").text.splitlines() == lines
    assert views.get(wan, "/logs", stage="train", since="1s").text == ""
    assert views.get(wan, "/logs").text != whole.text, "of the last stage where none is named"


def test_the_log_of_an_ended_pod_comes_to_its_end(views: Views, wan: Job) -> None:
    *_, line, end = views.events(wan, "/logs", follow=True, stage="train", tail=2)
    assert (line.kind, end.kind) == ("line", "end")
    assert json.loads(end.data) == {"reason": "the container has ended"}


def test_each_rank_has_its_log(views: Views, training: Job) -> None:
    for rank, pod in enumerate(("views-train-1-master-0", "views-train-1-worker-0")):
        first = training.kubectl.run("logs", pod, "-c", CONTAINER).splitlines()[:3]
        answer = views.get(training, "/logs", rank=rank, tail=100_000)
        assert answer.text.splitlines()[: len(first)] == first
    answer = views.get(training, "/logs", rank=7)
    assert answer.status_code == 404
    assert answer.json()["detail"].endswith("it has 0, 1")


def test_a_log_is_followed_and_goes_on_after_the_last_line(views: Views, training: Job) -> None:
    seen = views.lines(training, count=8, tail=3)
    assert len({event.id for event in seen}) == len(seen) == 8
    again = views.lines(training, count=5, last=seen[1].id)
    assert again[:5] == seen[2:7]


def test_a_job_is_watched(views: Views, training: Job) -> None:
    events = views.events(training, watch=True)
    first, synced = next(events), next(events)
    assert (first.kind, synced.kind) == ("added", "synced")
    before = json.loads(first.data)["status"]["progress"]["step"]
    changed = next(event for event in events if event.kind == "modified")
    assert json.loads(changed.data)["status"]["progress"]["step"] >= before
    assert int(changed.id) > int(synced.id)
    # A change that crossed the first reading is told to who resumes, and was part of what was read.
    assert changed in itertools.islice(views.events(training, watch=True, last=synced.id), 3)


def test_the_history_is_that_of_the_workspace(views: Views, wan: Job) -> None:
    steps = wan.lines("metrics.jsonl")
    whole = views.read(wan, "/history", series="loss", points=5000).json()
    (loss,) = whole["series"]
    assert whole["step"] == 30
    assert loss["steps"] == [line["step"] for line in steps]
    assert loss["values"] == pytest.approx([line["loss"] for line in steps])
    (few,) = views.read(wan, "/history", series="loss", points=10).json()["series"]
    assert len(few["steps"]) <= 10
    assert (few["steps"][0], few["steps"][-1]) == (1, 30)


def test_a_sample_is_a_video_that_plays(views: Views, wan: Job, workspace: Shell, tmp_path: Path) -> None:
    items = views.read(wan, "/samples").json()["items"]
    assert {item["round"] for item in items} == {"final"}
    assert len(items) == 4, "one for each caption"
    assert all(item["prompt"] for item in items)
    path = f"/samples/final/{items[0]['file']}"
    video = views.read(wan, path)
    assert video.headers["content-type"] == "video/mp4"
    assert len(video.content) == items[0]["size"]
    with av.open(io.BytesIO(video.content), mode="r") as reader:
        frames = [frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)]
    assert (len(frames), frames[0].shape) == (17, (64, 96, 3))
    part = views.read(wan, path, headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, video.content[4:12])
    (file,) = workspace.fetch(f"{wan.folder}/samples", tmp_path, items[0]["file"])
    assert video.content == file.read_bytes()


def reader_of(job: Job) -> Object | None:
    return job.kubectl.get("pod", f"{job.name}-reader-{job.uid[:8]}")


def test_the_pod_that_reads_may_do_nothing_else_and_ends_when_nobody_asks(views: Views, wan: Job) -> None:
    views.read(wan, "/samples")
    pod = reader_of(wan)
    assert pod is not None
    assert pod["spec"]["automountServiceAccountToken"] is False
    claims = [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
    assert [claim["readOnly"] for claim in claims] == [True]

    def ended() -> bool:
        found = reader_of(wan)
        return found is not None and found["status"]["phase"] == "Succeeded"

    until("the reader ends", ended, seconds=IDLE_SECONDS + 50, poll=1)
    views.read(wan, "/samples")
    again = reader_of(wan)
    assert again is not None and again["metadata"]["uid"] != pod["metadata"]["uid"]
    assert (wan.status.phase, wan.status.restarts) == (Phase.SUCCEEDED, 0), "the operator takes no notice of readers"


def test_a_reader_goes_with_its_job(views: Views, training: Job) -> None:
    views.read(training, "/history")
    assert reader_of(training) is not None
    training.delete()
    until("the reader is gone", lambda: reader_of(training) is None, seconds=60)
