# SPDX-License-Identifier: Apache-2.0
"""The quick start, and the guides that need a whole cluster, done as they say on the cluster of the other tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kinema_demo.install import helm_environment, values
from kinema_demo.kubectl import Kubectl, Object
from kinema_demo.workspace import Shell, inside

from kinema_cluster.build import HELM, ensure
from kinema_cluster.full import WORKSPACE

from tests import documents
from tests.cluster.jobs import Job
from tests.documents import Reader

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

IMAGE = "registry.example.com/kinema/wan2.1:0.1.0"
COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)"


def claim(kubectl: Kubectl) -> Object:
    """The claim as its owner would write it."""
    found = kubectl.get("pvc", WORKSPACE)
    assert found is not None
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": WORKSPACE}, "spec": found["spec"]}


def kubeconfig(kubectl: Kubectl, folder: Path) -> Path:
    """A kubeconfig of the cluster whose context has the tests' namespace."""
    config = json.loads(kubectl.run("config", "view", "--raw", "--flatten", "-o", "json"))
    for context in config["contexts"]:
        context["context"]["namespace"] = kubectl.namespace
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config), encoding="utf-8")
    return file


LEFT = ("vtj/first", "pod/loader", "rolebinding/reader", "serviceaccount/reader")
"""What a quick start that failed half-way leaves behind."""


@pytest.fixture(scope="module")
def reader(kubectl: Kubectl, images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody with an administrator's kubeconfig, whose images were loaded into the cluster."""
    ensure(HELM)
    folder = tmp_path_factory.mktemp("reader")
    loader = documents.read(documents.QUICK_START).file("loader.yaml")
    own = {
        "values.yaml": json.dumps(values(images)),
        "claim.yaml": json.dumps(claim(kubectl)),
        "loader.yaml": loader.replace(IMAGE, images["wan2.1"]),
    }
    kubectl.run("delete", *LEFT, "--ignore-not-found")
    yield Reader(
        folder,
        {**helm_environment(kubeconfig(kubectl, folder)), "NO_PROXY": "*"},
        own=own,
        programs={"kubectl": Path(kubectl.binary), "helm": HELM.binary("helm")},
    )
    kubectl.run("delete", *LEFT, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def prepared(wan: Job, workspace: Shell) -> Job:
    """The workspace of the quick start knows what another job over the same data has made: it is not made again."""
    wan.succeeded()
    shared = inside(wan.object["spec"]["storage"]["uri"])
    mine = inside(f"pvc://{WORKSPACE}/kinema")
    workspace.run("python", "-c", COPY, f"{shared}/artifacts", f"{mine}/artifacts")
    return wan


def test_the_readers_files_are_those_of_the_page() -> None:
    assert IMAGE in documents.read(documents.QUICK_START).file("loader.yaml")


def test_the_quick_start(reader: Reader, prepared: Job) -> None:
    printed = "\n".join(reader.run(documents.read(documents.QUICK_START)))
    assert "features: skipped" in printed, "the data of the other jobs was reused"
    assert "train: succeeded: 60 step" in printed
    (clip,) = (reader.folder / "kinema" / "samples" / "final").glob("*.mp4")
    assert clip.stat().st_size > 0
    assert prepared.kubectl.get("vtj", "first") is None


@pytest.mark.parametrize("name", [name for name in documents.ON_THE_CLUSTER if name != documents.QUICK_START])
def test_a_guide(reader: Reader, prepared: Job, name: str) -> None:
    reader.run(documents.read(name))
    assert prepared.kubectl.within("kinema-system").get("deployment", "kinema-operator") is not None
