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

from tests.cluster.jobs import NO_RESULT, POLL, Jobs
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def helm(kubectl: Kubectl, *arguments: str) -> subprocess.CompletedProcess[str]:
    ensure(HELM)
    return subprocess.run(
        [str(HELM.binary("helm")), *arguments, "--namespace", NAMESPACE],
        capture_output=True,
        text=True,
        env=helm_environment(kubectl.kubeconfig),
        timeout=400,
    )


def test_helm_test_passes_and_leaves_no_rights_behind(kubectl: Kubectl) -> None:
    done = helm(kubectl, "test", RELEASE, "--logs", "--timeout", "3m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the installation is sound" in done.stdout
    for check in ("crd/videotrainingjobs", "operator", "server", "training-operator"):
        assert f"ok   {check} " in done.stdout, done.stdout
    assert kubectl.get("clusterrole", "kinema-doctor") is None
    assert kubectl.within(NAMESPACE).get("rolebinding", "kinema-doctor") is None


@pytest.mark.slow
def test_a_job_outlives_upgrade_and_uninstall(kubectl: Kubectl, jobs: Jobs, images: Mapping[str, str]) -> None:
    stages = {**NO_RESULT, "train": {"steps": 150, "checkpoint": {"everySteps": 25}}}
    job = jobs.start("outlives", root=jobs.root("outlives"), stages=stages)
    attempt = job.running(Stage.TRAIN)
    started = until("pods that train", lambda: job.pods(attempt) or None, seconds=120, poll=POLL)
    chosen = values(images)
    try:
        install(kubectl, {**chosen, "operator": {**chosen["operator"], "settings": {"workers": 4}}})
        done = helm(kubectl, "uninstall", RELEASE, "--wait")
        assert done.returncode == 0, done.stderr
        assert kubectl.within(NAMESPACE).list("deployments") == []
        assert job.object["metadata"]["uid"] == job.uid
    finally:
        install(kubectl, chosen)
    job.succeeded()
    assert len(job.stage(Stage.TRAIN).attempts) == 1
    seen = {pod["metadata"]["uid"] for pod in job.all_pods()}
    assert {pod["metadata"]["uid"] for pod in started} <= seen, "no pod was started anew"
