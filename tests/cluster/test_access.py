# SPDX-License-Identifier: Apache-2.0
"""Who may post progress: the pod that runs the attempt. Who may read: whom the cluster lets read jobs."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kinema_demo.install import NAMESPACE
from kinema_demo.install import namespace as namespace_object
from kinema_demo.kubectl import Kubectl, Object

from kinema_api.names import PROGRESS_AUDIENCE, PROGRESS_DIR, Stage
from kinema_api.status import JobStatus

from tests.cluster.jobs import NO_RESULT, Job, Jobs
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

POST: dict[str, Any] = {
    "trainerStatus": {"progressPercentage": 1, "metrics": [{"name": "loss", "value": "666"}]},
}


@dataclass(frozen=True, slots=True)
class Server:
    """The server, by a port that kubectl forwards."""

    port: int
    tls: ssl.SSLContext

    def ask(self, method: str, path: str, *, token: str | None, body: object = None) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sock = self.tls.wrap_socket(raw, server_hostname=f"kinema-server.{NAMESPACE}.svc")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        connection.close()
        return answer.status, found


@pytest.fixture(scope="module")
def server(kubectl: Kubectl) -> Iterator[Server]:
    """The installed server, its certificate checked against the Secret that the operator made."""
    system = kubectl.within(NAMESPACE)
    secret = system.get("secret", "kinema-server-tls")
    assert secret is not None
    tls = ssl.create_default_context(cadata=base64.b64decode(secret["data"]["ca.crt"]).decode())
    with system.popen("port-forward", "service/kinema-server", ":443") as forward:
        assert forward.stdout is not None
        port = int(forward.stdout.readline().split("127.0.0.1:")[1].split()[0])
        yield Server(port=port, tls=tls)
        forward.terminate()


@pytest.fixture(scope="module")
def training(jobs: Jobs, wan: Job, shared: str) -> Iterator[Job]:
    """A job that trains on and on."""
    wan.succeeded()
    job = jobs.start("access", root=shared, stages={**NO_RESULT, "train": {"steps": 1_000_000}})
    job.running(Stage.TRAIN)
    job.until("it trains", _steps)
    yield job
    job.delete()


def _steps(status: JobStatus) -> bool:
    """Whether training itself has spoken; before, the operator says that it begins."""
    progress = status.progress
    return progress is not None and progress.stage is Stage.TRAIN and bool(progress.step)


@pytest.fixture(scope="module")
def stranger(kubectl: Kubectl) -> Iterator[Kubectl]:
    """Another namespace."""
    other = kubectl.within("kinema-test-other")
    other.apply(namespace_object(other.namespace))
    until("it has an account", lambda: other.get("serviceaccount", "default"), seconds=30)
    yield other
    other.run("delete", "namespace", other.namespace, "--wait=false")


def progress_path(job: Job, *, stage: str = "train", attempt: int = 1, namespace: str | None = None) -> str:
    where = namespace or job.kubectl.namespace
    return f"/v1alpha1/namespaces/{where}/videotrainingjobs/{job.name}/stages/{stage}/attempts/{attempt}/progress"


def pod_of(job: Job, suffix: str = "master-0") -> Object:
    found = job.kubectl.get("pod", f"{job.name}-train-1-{suffix}")
    assert found is not None
    return found


def token_of(kubectl: Kubectl, pod: Object | None = None, *, audience: str | None = PROGRESS_AUDIENCE) -> str:
    """A fresh token of the namespace's default account, bound to a pod if one is given."""
    bound = []
    if pod is not None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={name}", f"--bound-object-uid={uid}"]
    return kubectl.run("create", "token", "default", *bound, *([f"--audience={audience}"] if audience else [])).strip()


def other_pod(kubectl: Kubectl, workspace_pod: str = "workspace") -> Object:
    found = kubectl.get("pod", workspace_pod)
    assert found is not None
    return found


def test_the_pods_own_token_posts(server: Server, training: Job) -> None:
    token = training.kubectl.run("exec", pod_of(training)["metadata"]["name"], "--", "cat", f"{PROGRESS_DIR}/token")
    status, answer = server.ask("POST", progress_path(training), token=token, body={"trainerStatus": {}})
    assert (status, answer) == (200, {"trainerStatus": {}})


def test_foreign_tokens_post_nothing(server: Server, training: Job, stranger: Kubectl) -> None:
    kubectl = training.kubectl
    refused = {
        "no token": (None, 401),
        "no token at all": ("nonsense", 401),
        "another audience": (token_of(kubectl, pod_of(training), audience=None), 401),
        "no pod": (token_of(kubectl), 403),
        "another pod": (token_of(kubectl, other_pod(kubectl)), 403),
        "another namespace": (token_of(stranger), 403),
    }
    for what, (token, wanted) in refused.items():
        status, answer = server.ask("POST", progress_path(training), token=token, body=POST)
        assert status == wanted, (what, status, answer)
        assert answer["status"] == wanted, what
        assert answer["detail"], what


def test_a_pod_speaks_for_no_other_attempt_stage_or_job(server: Server, training: Job, wan: Job) -> None:
    token = token_of(training.kubectl, pod_of(training))
    for path in (
        progress_path(training, attempt=2),
        progress_path(training, stage="check"),
        progress_path(wan),
        progress_path(training, namespace="default"),
    ):
        status, answer = server.ask("POST", path, token=token, body=POST)
        assert status == 403, (path, status, answer)
    loss = {job.name: job.status.progress for job in (training, wan)}
    assert all(progress is None or progress.loss != "666.0" for progress in loss.values())


def test_no_token_reads_nothing(server: Server, training: Job) -> None:
    one = f"/v1alpha1/namespaces/{training.kubectl.namespace}/videotrainingjobs/{training.name}"
    paths = ("/v1alpha1/videotrainingjobs", one.rpartition("/")[0], one, f"{one}/stages", f"{one}/progress")
    account = token_of(training.kubectl, audience=None)
    for path in paths:
        assert server.ask("GET", path, token=None)[0] == 401, path
        assert server.ask("GET", path, token="nonsense")[0] == 401, path
        assert server.ask("GET", path, token=token_of(training.kubectl, pod_of(training)))[0] == 401, path
        status, answer = server.ask("GET", path, token=account)
        assert status == 403, f"{path}: the default account may read no jobs"
        assert "may not" in answer["detail"]


def test_who_may_read_jobs_reads_them(server: Server, training: Job) -> None:
    kubectl = training.kubectl
    account = f"--serviceaccount={kubectl.namespace}:default"
    kubectl.run("create", "rolebinding", "readers", "--clusterrole=view", account)
    try:
        token = token_of(kubectl, audience=None)
        one = f"/v1alpha1/namespaces/{kubectl.namespace}/videotrainingjobs/{training.name}"
        until("the right has come through", lambda: server.ask("GET", one, token=token)[0] == 200, seconds=30)
        status, answer = server.ask("GET", f"{one}/progress", token=token)
        assert (status, answer["stage"]) == (200, "train")
        status, answer = server.ask("GET", one.rpartition("/")[0], token=token)
        assert status == 200
        assert training.name in {row["name"] for row in answer["items"]}
        assert server.ask("GET", "/v1alpha1/videotrainingjobs", token=token)[0] == 403, "of this namespace only"
    finally:
        kubectl.run("delete", "rolebinding", "readers")
