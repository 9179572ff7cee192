# SPDX-License-Identifier: Apache-2.0
"""The server as it is installed: its own account and rules, real tokens of real pods, a real API server."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kinema_api.names import PROGRESS_AUDIENCE, Stage
from kinema_api.progress import ENV_CA, ENV_TOKEN, ENV_URL
from kinema_cluster.build import HELM, ensure
from kinema_cluster.control_plane import HOST, ControlPlane, free_ports
from kinema_operator import tls
from kinema_stage.progress import Progress

from tests.waiting import until

pytestmark = pytest.mark.controlplane

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0
POST = {
    "trainerStatus": {
        "progressPercentage": 42,
        "estimatedRemainingSeconds": 11520,
        "metrics": [
            {"name": "step", "value": "126"},
            {"name": "total_steps", "value": "300"},
            {"name": "loss", "value": "0.123456"},
        ],
        "lastUpdatedTime": "2026-11-21T10:00:00Z",
    }
}


@dataclass
class Cluster:
    """The API server as its administrator sees it."""

    plane: ControlPlane

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = self.plane.api.request("POST", path, body)
        return made

    def get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.plane.api.get(path)
        return found

    def namespace(self) -> str:
        name = f"team-{uuid.uuid4().hex[:8]}"
        self.create("/api/v1/namespaces", {"metadata": {"name": name}})
        until("no default account", lambda: self.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"))
        return name

    def job(self, namespace: str, name: str = "wan") -> dict[str, Any]:
        manifest = yaml.safe_load((ROOT / "examples" / "wan-job.yaml").read_text())
        manifest["metadata"] = {"name": name, "namespace": namespace}
        return self.create(jobs_path(namespace), manifest)

    def batch_job(self, owner: dict[str, Any], stage: str, attempt: int = 1) -> dict[str, Any]:
        """A child of `owner`, and the pod that Kubernetes makes for it."""
        namespace = owner["metadata"]["namespace"]
        name = f"{owner['metadata']['name']}-{stage}-{attempt}"
        body = {
            "metadata": {"name": name, "ownerReferences": [owner_reference(owner)]},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container()]}}},
        }
        self.create(f"/apis/batch/v1/namespaces/{namespace}/jobs", body)
        return self._pod(namespace, f"batch.kubernetes.io/job-name={name}")

    def pytorch_job(self, owner: dict[str, Any], stage: str, attempt: int = 1) -> dict[str, Any]:
        """As `batch_job`, of the kind that trains."""
        namespace = owner["metadata"]["namespace"]
        name = f"{owner['metadata']['name']}-{stage}-{attempt}"
        master = {"replicas": 1, "template": {"spec": {"containers": [container()]}}}
        body = {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": name, "ownerReferences": [owner_reference(owner)]},
            "spec": {"pytorchReplicaSpecs": {"Master": master}},
        }
        self.create(f"/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs", body)
        return self._pod(namespace, f"training.kubeflow.org/job-name={name}")

    def _pod(self, namespace: str, labels: str) -> dict[str, Any]:
        path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={labels}"
        pods: list[dict[str, Any]] = until(f"no pod {labels}", lambda: self.get(path)["items"])
        return pods[0]

    def token(
        self,
        namespace: str,
        *,
        account: str = "default",
        audience: str | None = PROGRESS_AUDIENCE,
        pod: dict[str, Any] | None = None,
    ) -> str:
        """A token as kubelet asks for one."""
        spec: dict[str, Any] = {"audiences": [audience]} if audience else {}
        if pod is not None:
            metadata = pod["metadata"]
            reference = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
            spec["boundObjectRef"] = reference
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        token: str = self.create(path, {"spec": spec})["status"]["token"]
        return token

    def account(self, namespace: str, *, may: list[str]) -> str:
        """The token of a new account that may do these verbs to the namespace's jobs."""
        name = f"user-{uuid.uuid4().hex[:8]}"
        self.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
        if may:
            rules = [{"apiGroups": ["kinema.dev"], "resources": ["videotrainingjobs"], "verbs": may}]
            rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
            self.create(f"{rbac}/roles", {"metadata": {"name": name}, "rules": rules})
            binding = {
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            }
            self.create(f"{rbac}/rolebindings", binding)
        return self.token(namespace, account=name, audience=None)

    def progress(self, namespace: str, name: str = "wan") -> dict[str, Any] | None:
        status = self.get(f"{jobs_path(namespace)}/{name}").get("status") or {}
        progress: dict[str, Any] | None = status.get("progress")
        return progress


@dataclass
class Server:
    """A running server process."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    metrics_port: int

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        return httpx.Client(base_url=self.url, verify=context, headers=headers, timeout=DEADLINE)

    def post(
        self,
        token: str | None,
        namespace: str,
        *,
        name: str = "wan",
        stage: str = "features",
        attempt: int = 1,
        body: Any = POST,
    ) -> httpx.Response:
        path = f"/v1alpha1/namespaces/{namespace}/videotrainingjobs/{name}/stages/{stage}/attempts/{attempt}/progress"
        with self.client(token) as client:
            return client.post(path, json=body)

    def get(self, token: str | None, path: str) -> httpx.Response:
        with self.client(token) as client:
            return client.get(f"/v1alpha1{path}")


def jobs_path(namespace: str) -> str:
    return f"/apis/kinema.dev/v1alpha1/namespaces/{namespace}/videotrainingjobs"


def owner_reference(owner: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }


def container() -> dict[str, Any]:
    return {"name": "pytorch", "image": "localhost/none"}


def put_certificate(folder: Path, authority: tls.Pair) -> None:
    leaf = tls.make_leaf(authority, dns_names=["localhost"], now=datetime.now(UTC))
    (folder / "ca.crt").write_bytes(authority.certificate)
    (folder / "tls.crt").write_bytes(leaf.certificate)
    (folder / "tls.key").write_bytes(leaf.key)


def install(plane: ControlPlane) -> None:
    """The account and the rules of the chart, and no more."""
    ensure(HELM)
    command = [str(HELM.binary("helm")), "template", "kinema", str(ROOT / "charts" / "kinema")]
    only = ["-s", "templates/rbac-server.yaml", "-s", "templates/serviceaccounts.yaml"]
    rendered = subprocess.run(
        [*command, "--namespace", "kinema-system", "--kube-version", "1.36.0", *only],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kinema-system"}}
    plane.apply([namespace, *(item for item in yaml.safe_load_all(rendered) if item)])


def start_server(plane: ControlPlane, folder: Path, *, interval: float) -> Server:
    """A server that uses the installed account, and a certificate of the operator's making."""
    put_certificate(folder, tls.make_ca(now=datetime.now(UTC)))
    token = Cluster(plane).token("kinema-system", account="kinema-server", audience=None)
    kubeconfig = json.loads(plane.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    kubeconfig["users"] = [{"name": user["name"], "user": {"token": token}} for user in kubeconfig["users"]]
    (folder / "kubeconfig").write_text(json.dumps(kubeconfig))
    port, metrics_port = free_ports(2)
    settings = {
        "host": HOST,
        "port": port,
        "metricsPort": metrics_port,
        "certificate": str(folder / "tls.crt"),
        "key": str(folder / "tls.key"),
        "certificateCheckSeconds": 0.1,
        "kubeconfig": str(folder / "kubeconfig"),
        "progressIntervalSeconds": interval,
        "logLevel": "debug",
    }
    (folder / "server.yaml").write_text(yaml.safe_dump(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kinema_server", "--config", str(folder / "server.yaml")],
            stderr=log,
            cwd=ROOT / "operator",
        )
    server = Server(process=process, url=f"https://localhost:{port}", folder=folder, metrics_port=metrics_port)

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with server.client() as client:
                return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    until("the server is not ready", ready)
    return server


@pytest.fixture(scope="module")
def cluster(plane: ControlPlane) -> Cluster:
    install(plane)
    return Cluster(plane)


@pytest.fixture(scope="module")
def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(cluster.plane, tmp_path_factory.mktemp("server"), interval=0.5)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.wait(timeout=DEADLINE)


def test_progress_of_a_training_pod_shows_in_kubectl(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    pod = cluster.pytorch_job(cluster.job(namespace), "train")
    token = cluster.token(namespace, pod=pod)

    answer = server.post(token, namespace, stage="train")
    assert (answer.status_code, answer.json()) == (200, POST)

    progress = cluster.progress(namespace)
    assert progress is not None
    assert progress.pop("updatedAt")
    assert progress == {
        "stage": "train",
        "attempt": 1,
        "percent": "42%",
        "percentage": 42,
        "step": 126,
        "totalSteps": 300,
        "loss": "0.1235",
        "eta": "3h12m",
        "etaSeconds": 11520,
        "metrics": {"step": "126", "total_steps": "300", "loss": "0.123456"},
    }
    shown = cluster.plane.kubectl("get", "vtj", "wan", "-n", namespace).splitlines()
    assert shown[0].split()[:6] == ["NAME", "PHASE", "STAGE", "PROGRESS", "ETA", "LOSS"]
    assert shown[1].split()[:4] == ["wan", "42%", "3h12m", "0.1235"]
    managers = cluster.get(f"{jobs_path(namespace)}/wan")["metadata"]["managedFields"]
    assert [entry["subresource"] for entry in managers if entry["manager"] == "kinema-server"] == ["status"]


def test_the_trainers_own_client_is_understood(cluster: Cluster, server: Server, tmp_path: Path) -> None:
    namespace = cluster.namespace()
    pod = cluster.pytorch_job(cluster.job(namespace), "train")
    (tmp_path / "token").write_text(cluster.token(namespace, pod=pod))
    path = f"/v1alpha1/namespaces/{namespace}/videotrainingjobs/wan/stages/train/attempts/1/progress"
    environment = {
        ENV_URL: f"{server.url}{path}",
        ENV_CA: str(server.folder / "ca.crt"),
        ENV_TOKEN: str(tmp_path / "token"),
        "KINEMA_METRICS_PORT": "0",
    }
    progress = Progress(Stage.TRAIN, environment=environment)
    progress.report(done=3, total=300, metrics={"loss": 0.25})
    until("the first report did not arrive", lambda: (cluster.progress(namespace) or {}).get("percent") == "1%")
    progress.report(done=300, total=300, metrics={"loss": 0.125})
    progress.close(success=True)
    shown = cluster.progress(namespace)
    assert shown is not None
    assert (shown["percent"], shown["step"], shown["totalSteps"], shown["loss"]) == ("100%", 300, 300, "0.1250")


def test_the_last_value_is_written_after_the_interval_and_the_end_at_once(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    token = cluster.token(namespace, pod=cluster.batch_job(cluster.job(namespace), "features"))

    def post(percentage: int) -> None:
        body = {"trainerStatus": {"progressPercentage": percentage}}
        assert server.post(token, namespace, body=body).status_code == 200

    def shown() -> str | None:
        progress = cluster.progress(namespace)
        return progress["percent"] if progress else None

    for percentage in range(5):
        post(percentage)
    until("the last value was lost", lambda: shown() == "4%")
    post(100)
    assert shown() == "100%"


REFUSED: dict[str, tuple[int, Callable[[World], str | None]]] = {
    "no token": (401, lambda world: None),
    "garbage": (401, lambda world: "garbage"),
    "another audience": (401, lambda world: world.cluster.token(world.namespace, audience="vault", pod=world.pod)),
    "the API server's audience": (
        401,
        lambda world: world.cluster.token(world.namespace, audience=None, pod=world.pod),
    ),
    "no pod": (403, lambda world: world.cluster.token(world.namespace)),
    "a pod of another stage": (403, lambda world: world.of(world.cluster.batch_job(world.job, "convert"))),
    "a pod of another attempt": (403, lambda world: world.of(world.cluster.batch_job(world.job, "features", 2))),
    "a pod of another job": (403, lambda world: world.of(world.stranger)),
    "a pod of another namespace": (403, lambda world: world.foreign()),
    "a pod of nobody": (403, lambda world: world.of(world.loose_pod())),
}


@dataclass
class World:
    """A job with a pod that may post, and everybody who may not."""

    cluster: Cluster
    namespace: str
    job: dict[str, Any]
    pod: dict[str, Any]

    def of(self, pod: dict[str, Any]) -> str:
        return self.cluster.token(pod["metadata"]["namespace"], pod=pod)

    @property
    def stranger(self) -> dict[str, Any]:
        other = self.cluster.job(self.namespace, "other")
        return self.cluster.batch_job(other, "features")

    def foreign(self) -> str:
        """The same names all the way up, in another namespace."""
        namespace = self.cluster.namespace()
        return self.of(self.cluster.batch_job(self.cluster.job(namespace), "features"))

    def loose_pod(self) -> dict[str, Any]:
        """A pod that bears the right names and labels, and belongs to no child."""
        body = {
            "metadata": {
                "name": "wan-features-1-0",
                "labels": {"kinema.dev/job": "wan", "kinema.dev/stage": "features", "kinema.dev/attempt": "1"},
            },
            "spec": {"containers": [container()]},
        }
        return self.cluster.create(f"/api/v1/namespaces/{self.namespace}/pods", body)


@pytest.fixture(scope="module")
def world(cluster: Cluster) -> World:
    namespace = cluster.namespace()
    job = cluster.job(namespace)
    return World(cluster=cluster, namespace=namespace, job=job, pod=cluster.batch_job(job, "features"))


@pytest.mark.parametrize("case", REFUSED)
def test_any_other_token_posts_nothing(world: World, server: Server, case: str) -> None:
    code, token = REFUSED[case]
    answer = server.post(token(world), world.namespace)
    status = answer.json()
    assert (answer.status_code, status["status"]) == (code, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert world.cluster.progress(world.namespace) is None


def test_a_token_dies_with_its_pod_and_its_job(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    path = f"{jobs_path(namespace)}/wan"
    token = cluster.token(namespace, pod=cluster.batch_job(cluster.job(namespace), "features"))
    assert server.post(token, namespace).status_code == 200

    cluster.plane.api.request("DELETE", path)
    again = cluster.job(namespace)
    # The server has verified the token and remembers it.
    final = {"trainerStatus": {"progressPercentage": 100}}
    answer = server.post(token, namespace, body=final)
    assert answer.status_code == 404, answer.text
    answer = server.post(token, namespace, body=final)
    # 401 once Kubernetes has collected the pod too.
    assert answer.status_code in (401, 403), answer.text
    assert cluster.get(path)["metadata"]["uid"] == again["metadata"]["uid"]
    assert cluster.progress(namespace) is None


def test_a_superseded_attempt_is_told_so(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    job = cluster.job(namespace)
    token = cluster.token(namespace, pod=cluster.batch_job(job, "features"))
    attempts = [
        {"number": number, "child": f"wan-features-{number}", "state": state, "startedAt": "2026-11-21T10:00:00Z"}
        for number, state in ((1, "Failed"), (2, "Running"))
    ]
    status = {"status": {"stages": [{"name": "features", "state": "Running", "attempts": attempts}]}}
    cluster.plane.kubectl(
        "patch", "vtj", "wan", "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(status)
    )
    answer = server.post(token, namespace)
    assert (answer.status_code, answer.json()["reason"]) == (409, "Conflict")
    assert cluster.progress(namespace) is None


BAD_BODIES = {
    "not JSON": (400, b"{"),
    "a list": (422, b"[]"),
    "percentage too large": (422, b'{"trainerStatus": {"progressPercentage": 101}}'),
    "metric without a value": (422, b'{"trainerStatus": {"metrics": [{"name": "loss"}]}}'),
    "too long": (413, b" " * (64 * 1024 + 1)),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_named(world: World, server: Server, case: str) -> None:
    code, body = BAD_BODIES[case]
    path = f"/v1alpha1/namespaces/{world.namespace}/videotrainingjobs/wan/stages/features/attempts/1/progress"
    with server.client(world.of(world.pod)) as client:
        answer = client.post(path, content=body)
    assert (answer.status_code, answer.json()["status"]) == (code, code), answer.text
    assert world.cluster.progress(world.namespace) is None


READS = ["", "/wan", "/wan/stages", "/wan/progress"]


@pytest.mark.parametrize("path", READS)
def test_no_token_reads_nothing(world: World, server: Server, path: str) -> None:
    for token in (None, "garbage", world.of(world.pod)):
        answer = server.get(token, f"/namespaces/{world.namespace}/videotrainingjobs{path}")
        assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")
    assert server.get(None, "/videotrainingjobs").status_code == 401


@pytest.mark.parametrize("path", READS)
def test_the_clusters_own_rules_decide_who_reads(world: World, server: Server, path: str) -> None:
    url = f"/namespaces/{world.namespace}/videotrainingjobs{path}"
    nobody = world.cluster.account(world.namespace, may=[])
    answer = server.get(nobody, url)
    assert answer.status_code == 403
    assert world.namespace in answer.json()["detail"]

    reader = world.cluster.account(world.namespace, may=["get", "list"])
    assert server.get(reader, url).status_code == 200, answer.text
    other = world.cluster.namespace()
    assert server.get(reader, f"/namespaces/{other}/videotrainingjobs{path}").status_code == 403


def test_a_verb_that_was_not_granted_is_refused(world: World, server: Server) -> None:
    url = f"/namespaces/{world.namespace}/videotrainingjobs"
    getter = world.cluster.account(world.namespace, may=["get"])
    assert server.get(getter, f"{url}/wan").status_code == 200
    assert server.get(getter, url).status_code == 403


def test_the_list_of_all_namespaces_needs_the_right_to_it(world: World, server: Server) -> None:
    reader = world.cluster.account(world.namespace, may=["get", "list"])
    answer = server.get(reader, "/videotrainingjobs")
    assert answer.status_code == 403
    assert "ask for one namespace" in answer.json()["detail"]


def test_reads_show_what_kubectl_shows(cluster: Cluster, server: Server) -> None:
    namespace = cluster.namespace()
    for name in ("one", "two", "three"):
        job = cluster.job(namespace, name)
    pod = cluster.batch_job(job, "features")
    assert server.post(cluster.token(namespace, pod=pod), namespace, name="three").status_code == 200
    reader = cluster.account(namespace, may=["get", "list"])
    url = f"/namespaces/{namespace}/videotrainingjobs"

    page = server.get(reader, f"{url}?limit=2").json()
    rows = page["items"]
    assert page["next"]
    rest = server.get(reader, f"{url}?limit=2&continue={page['next']}").json()
    assert rest["next"] == ""
    rows = {row["name"]: row for row in [*rows, *rest["items"]]}
    assert set(rows) == {"one", "two", "three"}
    row = rows["three"]
    assert (row["phase"], row["progress"], row["eta"], row["loss"]) == ("Pending", "42%", "3h12m", "0.1235")
    assert (row["model"], row["restarts"], row["namespace"]) == ("wan2.1-tiny", 0, namespace)

    whole = server.get(reader, f"{url}/three").json()
    assert whole["spec"] == job["spec"]
    assert "managedFields" not in whole["metadata"]
    assert server.get(reader, f"{url}/three/stages").json() == {"items": []}
    assert server.get(reader, f"{url}/three/progress").json()["progress"]["percent"] == "42%"
    assert server.get(reader, f"{url}/one/progress").json()["progress"] is None
    assert server.get(reader, f"{url}/none").status_code == 404
    assert server.get(reader, f"{url}?continue=nonsense").status_code in (400, 410)
    assert server.get(reader, f"{url}?limit=0").status_code == 422


def test_a_new_certificate_is_served_without_a_restart(cluster: Cluster, server: Server) -> None:
    before = (server.folder / "ca.crt").read_bytes()
    put_certificate(server.folder, tls.make_ca(now=datetime.now(UTC)))
    assert (server.folder / "ca.crt").read_bytes() != before

    def trusted() -> bool:
        try:
            with server.client() as client:
                return client.get("/healthz").status_code == 200
        except httpx.ConnectError:
            return False

    until("the old certificate is still served", trusted)
    assert server.process.poll() is None


def test_metrics_count_requests(server: Server) -> None:
    text = httpx.get(f"http://{HOST}:{server.metrics_port}/metrics").text
    assert 'kinema_server_requests_total{code="200",method="GET",route="/readyz"}' in text
    assert "kinema_server_certificate_not_after_seconds" in text


def test_what_waits_is_written_when_the_server_stops(cluster: Cluster, tmp_path: Path) -> None:
    namespace = cluster.namespace()
    token = cluster.token(namespace, pod=cluster.batch_job(cluster.job(namespace), "features"))
    server = start_server(cluster.plane, tmp_path, interval=600)
    try:
        for percentage in (1, 2):
            body = {"trainerStatus": {"progressPercentage": percentage}}
            assert server.post(token, namespace, body=body).status_code == 200
        progress = cluster.progress(namespace)
        assert progress is not None
        assert progress["percent"] == "1%"
    finally:
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(timeout=DEADLINE)
    assert code == 0
    progress = cluster.progress(namespace)
    assert progress is not None
    assert progress["percent"] == "2%"
    for line in (tmp_path / "log").read_text().splitlines():
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
