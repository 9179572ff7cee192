# SPDX-License-Identifier: Apache-2.0
"""The Pod Security standard `restricted` is enforced wherever jobs of the CPU tests and of the demo run."""

from __future__ import annotations

import pytest
from kinema_demo import install, target
from kinema_demo.kubectl import Kubectl
from kinema_demo.target import Target

from kinema_api.names import Stage

from tests.cluster.jobs import Job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ENFORCE = "pod-security.kubernetes.io/enforce"
DEMO = "default"
PRIVILEGED = '{"spec": {"containers": [{"name": "x", "image": "x", "securityContext": {"privileged": true}}]}}'


@pytest.fixture(params=["tests", "system", "demo"])
def namespace(cluster: Target, kubectl: Kubectl, request: pytest.FixtureRequest) -> Kubectl:
    """Each namespace in which pods of Kinema run."""
    if request.param == "tests":
        return kubectl
    if request.param == "system":
        return kubectl.within(install.NAMESPACE)
    if cluster.cluster is None:
        pytest.skip("the demo leaves the labels of a namespace of the user's alone")
    return target.find(print, namespace=DEMO).kubectl


def test_it_is_enforced(namespace: Kubectl) -> None:
    found = namespace.get("namespace", namespace.namespace)
    assert found is not None
    assert found["metadata"]["labels"][ENFORCE] == "restricted"
    for overrides in (PRIVILEGED, "{}"):
        done = namespace.attempt("run", "too-much", "--image=x", f"--overrides={overrides}")
        assert done.returncode != 0
        assert 'violates PodSecurity "restricted:latest"' in done.stderr
    assert namespace.get("pod", "too-much") is None


def test_every_stage_ran_under_it(kubectl: Kubectl, wan: Job) -> None:
    wan.succeeded()
    pods = wan.all_pods()
    assert {pod["metadata"]["namespace"] for pod in pods} == {kubectl.namespace}
    assert {pod["metadata"]["labels"]["kinema.dev/stage"] for pod in pods} == {stage.value for stage in Stage}
    assert {pod["status"]["phase"] for pod in pods} == {"Succeeded"}
