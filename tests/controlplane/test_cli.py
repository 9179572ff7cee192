# SPDX-License-Identifier: Apache-2.0
"""The command line in front of a real API server, with the credentials of its kubeconfig, and as kubectl's plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kinema_cluster.build import KUBERNETES
from kinema_cluster.control_plane import ControlPlane

pytestmark = [pytest.mark.controlplane]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "wan-1.3b-nvidia.yaml"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def namespace(plane: ControlPlane) -> str:
    name = f"cli-{uuid.uuid4().hex[:8]}"
    plane.kubectl("create", "namespace", name)
    return name


@pytest.fixture
def kinema(plane: ControlPlane, namespace: str) -> Run:
    """Run a command about the test's namespace."""

    def run(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kinema_cli", command, "-n", namespace, *map(str, arguments)],
            env={**os.environ, "KUBECONFIG": str(plane.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_a_job_from_submit_to_its_deletion(plane: ControlPlane, namespace: str, kinema: Run) -> None:
    checked = kinema("submit", EXAMPLE, "--dry-run")
    assert checked.stdout == f"job {namespace}/wan-1-3b would be accepted; nothing was created\n", checked.stderr
    assert kinema("list", "-o", "name").stdout == ""
    assert kinema("submit", EXAMPLE).returncode == 0
    assert "there is a job wan-1-3b" in kinema("submit", EXAMPLE).stderr
    assert kinema("list").stdout.splitlines()[1].split()[:2] == ["wan-1-3b", "Pending"]
    assert "the operator has not looked at the job" in kinema("why", "wan-1-3b").stdout
    found = json.loads(kinema("get", "wan-1-3b", "-o", "json").stdout)
    assert found["spec"]["defaults"]["pool"] == "h100"

    assert kinema("suspend", "wan-1-3b").stdout == f"job {namespace}/wan-1-3b suspended\n"
    assert json.loads(kinema("get", "wan-1-3b", "-o", "json").stdout)["spec"]["policy"]["suspend"] is True
    assert kinema("resume", "wan-1-3b").returncode == 0
    assert kinema("cancel", "wan-1-3b", "--yes").returncode == 0
    assert "is being cancelled" in kinema("suspend", "wan-1-3b").stderr

    with subprocess.Popen(
        [sys.executable, "-m", "kinema_cli", "get", "wan-1-3b", "--watch", "-n", namespace],
        env={**os.environ, "KUBECONFIG": str(plane.kubeconfig), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None and watching.stderr is not None
        job = {"status": {"phase": "Suspended", "stage": "check", "observedGeneration": 1}}
        plane.kubectl(
            "-n", namespace, "patch", "vtj", "wan-1-3b", "--subresource=status", "--type=merge", "-p", json.dumps(job)
        )
        assert watching.stdout.readline() == "suspended in check; `kinema resume wan-1-3b` lets it go on\n"
        plane.kubectl("-n", namespace, "delete", "vtj", "wan-1-3b")
        assert watching.wait(timeout=60) == 4
        assert watching.stderr.read() == "job wan-1-3b was deleted\n"


def test_what_the_api_server_refuses(namespace: str, kinema: Run, tmp_path: Path) -> None:
    job = yaml.safe_load(EXAMPLE.read_text())
    job["spec"]["storage"]["uri"] = "file:///data"
    (tmp_path / "mistyped.yaml").write_text(yaml.safe_dump(job))
    done = kinema("submit", tmp_path / "mistyped.yaml")
    assert done.returncode == 1
    assert "storage.uri: write pvc://CLAIM/PATH or s3://BUCKET/PREFIX" in done.stderr
    job["spec"]["storrage"] = job["spec"].pop("storage")
    (tmp_path / "mistyped.yaml").write_text(yaml.safe_dump(job))
    assert "spec.storrage" in kinema("submit", tmp_path / "mistyped.yaml").stderr
    assert "there is no namespace nowhere" in kinema("submit", EXAMPLE, "-n", "nowhere").stderr


def test_doctor_before_an_operator_runs(plane: ControlPlane, kinema: Run) -> None:
    done = kinema("doctor", "--system-namespace", "kinema-nowhere", "-o", "json")
    assert done.returncode == 1
    found = {item["check"]: item for item in json.loads(done.stdout)}
    assert found["api-server"]["verdict"] == "ok"
    assert found["crd/videotrainingjobs"]["verdict"] == found["crd/trainingpools"]["verdict"] == "ok"
    assert found["training-operator"]["verdict"] == "ok"
    assert found["rights"]["verdict"] == "ok"
    assert found["operator"]["verdict"] == found["server"]["verdict"] == "FAIL"


def test_the_way_to_the_server_leads_through_the_api_server(kinema: Run) -> None:
    """By its certificates, and with the user's; there is no server at the end of it."""
    kinema("submit", EXAMPLE)
    refused = kinema("loss", "wan-1-3b")
    assert refused.returncode == 1
    assert "kubectl create token" in refused.stderr, "a client certificate is no token"
    done = kinema("loss", "wan-1-3b", "--token", "mine", "--system-namespace", "default")
    assert done.returncode == 1
    assert done.stderr.startswith("kinema: the server says: ") and '"kinema-server" not found (404)' in done.stderr


def test_a_plan_over_the_clusters_pools(plane: ControlPlane, kinema: Run, namespace: str) -> None:
    pool = yaml.safe_load((ROOT / "examples" / "pools" / "nvidia-8gpu.yaml").read_text())
    pool["metadata"]["name"] = namespace
    plane.apply([pool])
    try:
        listed = subprocess.run(
            [sys.executable, "-m", "kinema_cli", "pools", "-o", "name", "--kubeconfig", str(plane.kubeconfig)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert f"trainingpool.kinema.dev/{namespace}\n" in listed.stdout, listed.stderr
    finally:
        plane.kubectl("delete", "tpool", namespace)


def test_kubectl_finds_the_plugin(plane: ControlPlane, namespace: str, kinema: Run, tmp_path: Path) -> None:
    kinema("submit", EXAMPLE)
    plugin = tmp_path / "kubectl-kinema"
    plugin.write_text(
        f"#!{sys.executable}\nimport sys\nfrom kinema_cli.__main__ import main\nsys.exit(main())\n", encoding="utf-8"
    )
    plugin.chmod(0o755)
    done = subprocess.run(
        [str(KUBERNETES.binary("kubectl")), "kinema", "list", "-o", "name", "-n", namespace],
        env={**os.environ, "KUBECONFIG": str(plane.kubeconfig), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "videotrainingjob.kinema.dev/wan-1-3b\n", done.stderr
