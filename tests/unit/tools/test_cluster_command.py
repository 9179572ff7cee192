# SPDX-License-Identifier: Apache-2.0
"""The command line, where no cluster is up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kinema_cluster import cli, control_plane, full
from kinema_cluster.control_plane import FakeNode
from kinema_cluster.errors import ClusterError

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(control_plane, "control_planes", lambda: tmp_path / "planes")


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "kubeconfig",
        "logs kubelet",
        "load x.tar",
        "volume data",
        "stop kubelet",
        "start kubelet",
    ],
)
def test_without_a_cluster_every_command_says_so(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = command.split()
    assert cli.main([name, "--state-dir", str(tmp_path / "none"), *rest]) == 1
    said = capsys.readouterr()
    assert "no cluster is up" in said.out + said.err


def test_an_unknown_tool_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "make"]) == 1
    assert "no tool 'make'. There are: kubernetes" in capsys.readouterr().err


def test_a_user_without_rights_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["up"]) == 1
    assert "sudo tools/cluster up" in capsys.readouterr().err


def test_a_folder_with_other_files_is_not_taken_for_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ClusterError, match="files of something else"):
        full.FullCluster(tmp_path).down()
    assert (tmp_path / "thesis.txt").exists()


def test_the_entry_runs_before_any_environment_is_made() -> None:
    """With nothing but the standard library: -I ignores site packages of the user and PYTHONPATH."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "tools" / "cluster"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout


@pytest.mark.parametrize("name", ["", "Upper", "../etc", "-a", "a" * 41])
def test_names_that_are_no_folder_names_are_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="no name of a control plane"):
        control_plane.layout_of(name)


def test_fake_nodes_carry_any_resource() -> None:
    node = FakeNode("gpu-0", resources={"nvidia.com/gpu": "8"}, labels={"a": "b"}).manifest()
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert node["metadata"]["labels"]["a"] == "b"


def test_ports_differ() -> None:
    assert len(set(control_plane.free_ports(20))) == 20


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 1, "readyReplicas": 1}, True),
        ({"observedGeneration": 1, "updatedReplicas": 1, "replicas": 1, "readyReplicas": 1}, False),
        ({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 2, "readyReplicas": 2}, False),
        ({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 1}, False),
    ],
)
def test_a_deployment_is_there_when_its_newest_pods_serve(status: dict[str, int], done: bool) -> None:
    conditions = [{"type": "Available", "status": "True"}]
    deployment = {"metadata": {"generation": 2}, "status": {**status, "conditions": conditions}}
    assert full.rolled_out(deployment) is done
    assert not full.rolled_out(None)
