# SPDX-License-Identifier: Apache-2.0
"""The release on a real cluster: `helm test` passes, and jobs outlive what happens to it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import pytest
from kinema_demo.install import NAMESPACE, RELEASE, helm_environment, install, values
from kinema_demo.kubectl import Kubectl

from kinema_api.names import Stage
from kinema_cluster.build import HELM, ensure

from tests.cluster.jobs import NO_RESULT, Job, Jobs
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

DEFINITIONS = ("videotrainingjobs.kinema.dev", "trainingpools.kinema.dev")
STEPS = 1200
"""Minutes of training: more than upgrade and uninstall take."""


def helm(kubectl: Kubectl, *arguments: str) -> subprocess.CompletedProcess[str]:
    ensure(HELM)
    return subprocess.run(
        [str(HELM.binary("helm")), *arguments, "--namespace", NAMESPACE],
        capture_output=True,
        text=True,
        env=helm_environment(kubectl.kubeconfig),
        timeout=400,
    )


def uids(kubectl: Kubectl, kind: str, *names: str) -> list[str]:
    """The uids of objects that must be there."""
    found = {name: kubectl.get(kind, name) for name in names}
    return [item["metadata"]["uid"] if item else f"{kind}/{name} is gone" for name, item in found.items()]


def test_helm_test_passes(kubectl: Kubectl) -> None:
    done = helm(kubectl, "test", RELEASE, "--logs", "--timeout", "3m")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("the installation is sound") for line in lines), done.stdout
    for check in ("crd/videotrainingjobs", "crd/trainingpools", "operator", "server", "training-operator", "pool/cpu"):
        assert any(line.split()[:2] == ["ok", check] for line in lines), f"{check}\n{done.stdout}"


@pytest.mark.slow
def test_jobs_and_definitions_outlive_upgrade_and_uninstall(
    kubectl: Kubectl, jobs: Jobs, wan: Job, shared: str, images: Mapping[str, str]
) -> None:
    wan.succeeded()
    stages = {**NO_RESULT, "train": {"steps": STEPS, "checkpoint": {"everySteps": 300}}}
    job = jobs.start("outlives", root=shared, stages=stages)
    attempt = job.running(Stage.TRAIN)

    def definitions() -> list[str]:
        return [*uids(kubectl, "crd", *DEFINITIONS), *uids(kubectl, "tpool", "cpu")]

    def training() -> dict[str, str]:
        return {pod["metadata"]["uid"]: pod["status"]["phase"] for pod in job.pods(attempt)}

    kept, running = definitions(), ["Running"] * job.object["spec"]["defaults"]["nodes"]
    pods = until("pods that train", lambda: found if [*(found := training()).values()] == running else None)
    chosen = values(images)
    try:
        install(kubectl, {**chosen, "operator": {**chosen["operator"], "settings": {"workers": 4}}})
        assert definitions() == kept, "an upgrade changes in place"
        done = helm(kubectl, "uninstall", RELEASE, "--wait", "--timeout", "5m")
        assert done.returncode == 0, done.stderr
        assert kubectl.within(NAMESPACE).list("deployments") == []
        assert definitions() == kept
        assert job.object["metadata"]["uid"] == job.uid
        assert training() == pods, "training goes on, in the same pods"
    finally:
        install(kubectl, chosen)
    job.succeeded()
    assert len(job.stage(Stage.TRAIN).attempts) == 1
    assert job.stage(Stage.TRAIN).counts["steps"] == STEPS
