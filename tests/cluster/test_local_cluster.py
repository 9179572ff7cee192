# SPDX-License-Identifier: Apache-2.0
"""The local cluster itself: up from every state, down to nothing.

These tests kill clusters, so they run in a state folder of their own, and only where no other full cluster is up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinema_cluster import addons, images
from kinema_cluster.api import wait_for
from kinema_cluster.errors import ClusterError
from kinema_cluster.full import COMPONENTS, FullCluster
from kinema_cluster.oci import write_scratch_image
from kinema_cluster.paths import MARKER, Layout
from kinema_cluster.record import Record, load
from kinema_cluster.supervisor import Supervisor

from tests.cluster.machine import processes, snapshot

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="the full cluster needs root"),
]
STATE = Path("/var/lib/kinema-test")


@pytest.fixture(scope="module")
def before() -> Iterator[dict[str, set[str]]]:
    """The machine before any of these clusters; afterwards it is so again."""
    if MARKER.exists():
        other = Path(json.loads(MARKER.read_text())["state"])
        record = load(Layout(other).record)
        if other != STATE and record and record.living():
            pytest.skip(f"a full cluster is in use in {other}: end it with `tools/cluster down` to test this")
    FullCluster(STATE).down()
    yield snapshot(STATE)
    FullCluster(STATE).down()


@pytest.fixture
def cluster(before: dict[str, set[str]]) -> FullCluster:
    """A full cluster that is up."""
    found = FullCluster(STATE)
    found.up()
    return found


def record_of(cluster: FullCluster) -> Record:
    found = load(cluster.layout.record)
    assert found
    return found


def pids(cluster: FullCluster) -> dict[str, int]:
    return {name: process.pid for name, process in record_of(cluster).living().items()}


def kubectl(cluster: FullCluster, *arguments: str, text: str | None = None) -> str:
    return Supervisor(plane=cluster.plane, record=record_of(cluster)).api().kubectl(*arguments, text=text)


def kill_everything(cluster: FullCluster) -> None:
    """What a power loss leaves of the processes: none, and none had time to tidy up."""
    while found := processes(STATE):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        wait_for("killed processes were still there", lambda: not set(found) & set(processes(STATE)), seconds=20)
    assert not pids(cluster)


def test_up_twice_is_up_once(cluster: FullCluster, capfd: pytest.CaptureFixture[str]) -> None:
    first = pids(cluster)
    assert set(first) == set(COMPONENTS)
    started = time.monotonic()
    cluster.up()
    assert time.monotonic() - started < 5
    assert pids(cluster) == first
    assert "up already" in capfd.readouterr().out
    assert set(cluster.health().values()) == {"ok"}


def test_up_brings_back_what_died_and_leaves_the_rest(cluster: FullCluster) -> None:
    first = pids(cluster)
    for name in ("kubelet", "kube-scheduler"):
        os.kill(first[name], signal.SIGKILL)
    wait_for("the kubelet lived", lambda: "kubelet" not in pids(cluster), seconds=10)
    cluster.up()
    second = pids(cluster)
    assert {name for name in COMPONENTS if second[name] != first[name]} == {"kubelet", "kube-scheduler"}
    assert set(cluster.health().values()) == {"ok"}


def test_a_second_full_cluster_is_refused(cluster: FullCluster, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"has a full cluster already, in {STATE}"):
        FullCluster(tmp_path / "other").up()
    assert not (tmp_path / "other").exists()
    assert set(cluster.health().values()) == {"ok"}


def test_up_clears_a_cluster_that_was_killed(cluster: FullCluster) -> None:
    uid = kubectl(cluster, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
    kill_everything(cluster)
    cluster.up()
    assert set(cluster.health().values()) == {"ok"}
    assert kubectl(cluster, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}") != uid


@pytest.mark.parametrize("killed", [False, True], ids=["healthy", "killed"])
def test_down_leaves_nothing(cluster: FullCluster, before: dict[str, set[str]], killed: bool) -> None:
    if killed:
        kill_everything(cluster)
    cluster.down()
    after = snapshot(STATE)
    for what, seen in before.items():
        assert after[what] - seen == set(), what
        assert seen - after[what] == set(), what


def test_loaded_images_survive_the_cluster(cluster: FullCluster, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_text("an image of a test")
    name = "kinema.local/test-image:one"
    archive = tmp_path / "image.tar"
    write_scratch_image(archive, name=name, files={"/content": content}, entrypoint=["/content"])
    assert cluster.load_image(archive) == [name]
    try:
        cluster.down()
        cluster.up()
        assert name in images.loaded(cluster.layout.containerd_socket)
    finally:
        images.ctr(cluster.layout.containerd_socket, "images", "remove", name)


def test_an_unprivileged_pod_writes_to_the_workspace(cluster: FullCluster) -> None:
    """Under the strictest security level, as Kinema's stages run."""
    kubectl(cluster, "label", "--overwrite", "namespace", "default", "pod-security.kubernetes.io/enforce=restricted")
    training_job = PYTORCH_JOB.replace("IMAGE", addons.image_names()["waitname"])
    kubectl(cluster, "apply", "--filename=-", text=training_job)
    kubectl(cluster, "wait", "--for=condition=Succeeded", "--timeout=90s", "pytorchjob/names")
    kubectl(cluster, "delete", "pytorchjob/names")
    workspace = Path(record_of(cluster).details["workspace"])
    assert workspace.stat().st_mode & 0o777 == 0o777
    done = subprocess.run(["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "touch", workspace / "mine"])
    assert done.returncode == 0


PYTORCH_JOB = """
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: names, namespace: default}
spec:
  nprocPerNode: "1"
  pytorchReplicaSpecs:
    Master: &role
      replicas: 1
      restartPolicy: Never
      template:
        spec:
          securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
          volumes: [{name: workspace, persistentVolumeClaim: {claimName: kinema-workspace}}]
          containers:
            - name: pytorch
              image: IMAGE
              command: [/waitname, names-master-0, "60"]
              securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
              volumeMounts: [{name: workspace, mountPath: /workspace}]
    Worker: *role
"""
