# SPDX-License-Identifier: Apache-2.0
"""Control planes themselves: several at once, real, and gone with those who wanted them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinema_cluster import build, cli, control_plane, processes
from kinema_cluster.api import wait_for
from kinema_cluster.control_plane import TOOLS, ControlPlane, FakeNode
from kinema_cluster.errors import ClusterError
from kinema_cluster.record import load

pytestmark = [pytest.mark.controlplane]
NAME = f"own-{os.getpid()}"
USER = """
import sys
from kinema_cluster.control_plane import control_plane
with control_plane({name!r}, nodes=1, training_operator=False) as plane:
    print(plane.kubeconfig, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    build.ensure(*TOOLS)


def job(**spec: object) -> str:
    container = {"name": "pytorch", "image": "kinema.local/none:1"}
    role = {"replicas": 1, "restartPolicy": "Never", "template": {"spec": {"containers": [container]}}}
    body = {"nprocPerNode": "1", "pytorchReplicaSpecs": {"Master": role, "Worker": role}, **spec}
    return json.dumps({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "a"}, "spec": body})


def test_two_at_once_know_nothing_of_each_other() -> None:
    with (
        control_plane.control_plane(f"{NAME}-one", nodes=1) as one,
        control_plane.control_plane(f"{NAME}-two", nodes=[FakeNode("npu-0", {"huawei.com/Ascend910": "8"})]) as two,
    ):
        assert one.server != two.server
        one.kubectl("create", "namespace", "mine")
        assert "mine" not in two.kubectl("get", "namespaces", "-o", "name")
        assert two.kubectl("get", "nodes", "-o", "name").split() == ["node/npu-0"]
        path = "jsonpath={.items[0].status.allocatable.huawei\\.com/Ascend910}"
        assert two.kubectl("get", "nodes", "-o", path) == "8"
        for plane in (one, two):
            plane.kubectl("apply", "--filename=-", text=job())
            plane.kubectl("wait", "--for=condition=Running", "--timeout=60s", "pytorchjob/a")
    assert not one.layout.root.exists()
    assert not one.processes() and not two.processes()


@pytest.fixture(scope="module")
def running() -> ControlPlane:
    return control_plane.start(f"{NAME}-kept", nodes=1)


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    control_plane.clear(control_plane.layout_of(f"{NAME}-kept"))


def test_the_webhook_of_training_operator_answers(running: ControlPlane) -> None:
    other = job().replace('"name": "pytorch"', '"name": "other"')
    with pytest.raises(ClusterError, match=r"denied the request.*with name pytorch"):
        running.kubectl("create", "--filename=-", text=other)


def test_unknown_fields_are_refused_when_asked_for(running: ControlPlane) -> None:
    with pytest.raises(ClusterError, match="unknown field"):
        running.kubectl("create", "--validate=strict", "--dry-run=server", "--filename=-", text=job(nodes=2))


def test_starting_it_again_brings_back_what_died(running: ControlPlane) -> None:
    running.kubectl("create", "namespace", "kept")
    first = running.processes()
    processes.stop([first["kube-scheduler"], first["kube-apiserver"]], grace=0)
    again = control_plane.start(running.name, nodes=1)
    second = again.processes()
    assert {name for name in first if first[name] != second[name]} == {"kube-scheduler", "kube-apiserver"}
    assert "kept" in again.kubectl("get", "namespaces", "-o", "name")


def test_the_command_shows_it_and_ends_it(running: ControlPlane, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--name", running.name]) == 0
    assert "kube-apiserver" in capsys.readouterr().out
    assert cli.main(["down", "--name", running.name]) == 0
    assert not running.layout.root.exists()
    assert cli.main(["status", "--name", running.name]) == 1


def test_it_ends_when_its_user_is_killed() -> None:
    name = f"{NAME}-orphan"
    layout = control_plane.layout_of(name)
    tools = str(Path(build.__file__).parents[1])
    user = subprocess.Popen(
        [sys.executable, "-c", USER.format(name=name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | {"PYTHONPATH": tools},
    )
    try:
        assert user.stdout and user.stdout.readline().strip() == str(layout.kubeconfig)
        record = load(layout.record)
        assert record and len(record.living()) == 5
    finally:
        user.kill()
        user.communicate()
    wait_for("the control plane outlived its user", lambda: not layout.root.exists(), seconds=30)
    assert not any(processes.alive(process) for process in record.processes.values())


def test_it_outlives_the_thread_that_started_it() -> None:
    started: list[ControlPlane] = []
    thread = threading.Thread(
        target=lambda: started.append(control_plane.start(f"{NAME}-thread", nodes=0, training_operator=False))
    )
    thread.start()
    thread.join()
    try:
        assert started[0].kubectl("get", "--raw", "/readyz") == "ok"
    finally:
        started[0].stop()
