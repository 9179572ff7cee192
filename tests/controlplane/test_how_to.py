# SPDX-License-Identifier: Apache-2.0
"""The guides that need no node, done as they say: in front of a real API server, with the operator at work."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kinema_demo.install import helm_environment

from kinema_cluster.build import HELM, KUBERNETES, ensure
from kinema_cluster.control_plane import ControlPlane, control_plane

from tests import documents
from tests.controlplane.installation import install, kubeconfig
from tests.controlplane.kubelet import Kubelet
from tests.controlplane.process import Operator, written
from tests.controlplane.team import Team, make_team
from tests.documents import Reader
from tests.waiting import until

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane whose only node is that of the pretended kubelet."""
    with control_plane(name=f"how-to-{os.getpid()}", nodes=0) as running:
        install(running)
        yield running


@pytest.fixture(scope="module")
def team(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A namespace in which jobs run."""
    folder = tmp_path_factory.mktemp("operator")
    operator = Operator(folder, *written(folder, kubeconfig(plane)))
    with Kubelet(plane) as kubelet:
        operator.start()
        until("the operator is not ready", operator.ready)
        yield make_team(plane, kubelet)
        assert operator.stop() == 0, operator.log()


@pytest.fixture
def reader(team: Team, tmp_path: Path) -> Reader:
    """An administrator of that cluster."""
    ensure(HELM)
    config = json.loads(team.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    for context in config["contexts"]:
        context["context"]["namespace"] = team.namespace
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config), encoding="utf-8")
    authority = "-----BEGIN CERTIFICATE-----\nof nobody\n-----END CERTIFICATE-----\n"
    return Reader(
        tmp_path,
        {**helm_environment(file), "NO_PROXY": "*"},
        own={"ca.crt": authority},
        programs={"kubectl": KUBERNETES.binary("kubectl"), "helm": HELM.binary("helm")},
        timeout=120,
    )


@pytest.mark.parametrize("name", documents.ON_THE_CONTROL_PLANE)
def test_a_guide_that_needs_no_node(reader: Reader, name: str) -> None:
    assert reader.run(documents.read(name))


READY_MADE = """\
```console
$ helm template kinema charts/kinema --kube-version 1.36 --values values.yaml \\
    --show-only templates/operator-deployment.yaml
...registry.example.com/kinema/control-plane:0.1.0...
$ kubectl apply --dry-run=server -f loader.yaml
$ sed s/kinema-workspace/another/ claim.yaml | kubectl apply --dry-run=server -f -
```
"""


def test_what_the_quick_start_leaves_to_its_reader_is_sound_as_it_stands(reader: Reader) -> None:
    page = documents.read(documents.QUICK_START)
    for name in ("values.yaml", "claim.yaml", "loader.yaml"):
        (reader.folder / "kinema" / name).write_text(page.file(name), encoding="utf-8")
    assert reader.run(documents.parse(READY_MADE, name="this test"))
