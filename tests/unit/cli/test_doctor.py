# SPDX-License-Identifier: Apache-2.0
"""`kinema doctor`, on a sound installation and on broken ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kinema_api.crd import job_definition, pool_definition
from kinema_cli import checks
from kinema_cli.checks import Verdict
from kinema_kube.resources import CUSTOM_RESOURCE_DEFINITIONS, LEASES, TRAINING_POOLS, Resource

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi, Request, kubeconfig, status

pytestmark = pytest.mark.unit

NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NOW = datetime.now(UTC)
PROXY = "/api/v1/namespaces/kinema-system/services/https:kinema-server:https/proxy/healthz"


def lease(renewed: datetime, holder: str = "kinema-operator-7d9f-abcde") -> dict[str, Any]:
    spec = {
        "holderIdentity": holder,
        "leaseDurationSeconds": 15,
        "renewTime": renewed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    return {"metadata": {"name": "kinema-operator", "namespace": "kinema-system"}, "spec": spec}


def node(name: str, *, devices: str = "8", ready: str = "True") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": dict(jobs.POOL["nodeSelector"])},
        "status": {"allocatable": {"nvidia.com/gpu": devices}, "conditions": [{"type": "Ready", "status": ready}]},
    }


@pytest.fixture
def sound(api: FakeApi) -> FakeApi:
    """An installation with nothing wrong."""
    served: dict[str, Any] = {
        "/version": {"major": "1", "minor": "34+", "gitVersion": "v1.34.2"},
        "/apis/kubeflow.org/v1": {"resources": [{"name": "pytorchjobs"}, {"name": "pytorchjobs/status"}]},
        "/apis/kinema.dev/v1alpha1": {"resources": [{"name": "videotrainingjobs"}, {"name": "trainingpools"}]},
        PROXY: {"status": "ok"},
    }
    api.hooks.append(lambda request: (200, served[request.path]) if request.path in served else None)
    for make in (job_definition, pool_definition):
        api.put(CUSTOM_RESOURCE_DEFINITIONS, make())
    api.put(LEASES, lease(datetime.now(UTC)))
    api.put(TRAINING_POOLS, {"metadata": {"name": "h100"}, "spec": jobs.POOL})
    api.put(NODES, node("gpu-0"))
    return api


def lines(text: str) -> dict[str, str]:
    return {line.split()[1]: line for line in text.splitlines()[:-1]}


def test_a_sound_installation(sound: FakeApi, kinema: Kinema) -> None:
    done = kinema("doctor")
    assert done.code == 0, done.out
    found = lines(done.out)
    assert list(found) == [
        "api-server",
        "crd/videotrainingjobs",
        "crd/trainingpools",
        "operator",
        "training-operator",
        "server",
        "rights",
        "pool/h100",
    ]
    assert all(line.startswith("ok ") for line in found.values()), done.out
    assert done.out.splitlines()[-1] == "the installation is sound"


def test_each_broken_part_is_found_with_what_to_do(sound: FakeApi, kinema: Kinema) -> None:
    old = pool_definition()
    old["metadata"]["annotations"] = {
        "kinema.dev/definition-digest": "0" * 32,
        "kinema.dev/definition-version": "0.0.9",
    }
    sound.put(CUSTOM_RESOURCE_DEFINITIONS, old)
    sound.objects.pop(CUSTOM_RESOURCE_DEFINITIONS.path(name="videotrainingjobs.kinema.dev"))
    sound.put(LEASES, lease(datetime.now(UTC) - timedelta(minutes=10)))
    sound.put(NODES, node("gpu-0", devices="0"))
    sound.denied.add(("create", "videotrainingjobs"))

    def broken(request: Request) -> Any:
        if request.path == PROXY:
            return 503, status(503, "ServiceUnavailable", 'no endpoints available for service "kinema-server"')
        return (404, status(404, "NotFound", "404 page not found")) if "kubeflow.org" in request.path else None

    sound.hooks.insert(0, broken)
    done = kinema("doctor")
    assert done.code == 1
    found = lines(done.out)
    for check, said in {
        "crd/videotrainingjobs": "is not installed; run `helm upgrade`",
        "crd/trainingpools": "is of 0.0.9, this command of",
        "operator": "renewed it 10m ago",
        "training-operator": "install Kubeflow's training-operator",
        "server": "no endpoints available",
    }.items():
        assert found[check].startswith("FAIL"), found[check]
        assert said in found[check]
    assert found["pool/h100"].startswith("warn") and "none with 8 nvidia.com/gpu" in found["pool/h100"]
    assert found["rights"].startswith("warn") and "you may not create videotrainingjobs in team" in found["rights"]
    assert done.out.splitlines()[-1] == "5 checks failed, 2 warnings"


def test_a_user_without_rights_to_look_is_told_what_was_left_out(sound: FakeApi, kinema: Kinema) -> None:
    hidden = ("/customresourcedefinitions", "/leases", "/nodes", "/services/")
    denied = (403, status(403, "Forbidden", "you cannot see that"))
    sound.hooks.insert(0, lambda request: denied if any(part in request.path for part in hidden) else None)
    done = kinema("doctor")
    assert done.code == 0, done.out
    found = lines(done.out)
    assert found["crd/trainingpools"].startswith("ok") and "is served" in found["crd/trainingpools"]
    assert all(found[check].startswith("skip") for check in ("operator", "server", "pool/h100"))


def test_warnings_count_when_asked_to(sound: FakeApi, kinema: Kinema) -> None:
    sound.denied.add(("create", "videotrainingjobs"))
    assert kinema("doctor").code == 0
    assert kinema("doctor", "--strict").code == 1


def test_rights_are_left_out_when_asked_to(sound: FakeApi, kinema: Kinema) -> None:
    sound.denied.add(("create", "videotrainingjobs"))
    done = kinema("doctor", "--no-rights", "--strict")
    assert (done.code, done.out.splitlines()[-1]) == (0, "the installation is sound")
    assert "rights" not in lines(done.out)
    assert not sound.sent("POST")


def test_no_cluster_at_all(kinema: Kinema, tmp_path: Path) -> None:
    done = kinema("doctor", "--kubeconfig", kubeconfig(tmp_path, "http://127.0.0.1:9"))
    assert done.code == 1
    assert done.out.startswith("FAIL api-server")
    missing = kinema("doctor", "--kubeconfig", tmp_path / "none")
    assert missing.code == 1
    assert "no kubeconfig at" in missing.out


def test_for_programs(sound: FakeApi, kinema: Kinema) -> None:
    found = json.loads(kinema("doctor", "-o", "json").out)
    assert {item["verdict"] for item in found} == {"ok"}
    assert found[0]["said"].startswith("Kubernetes v1.34.2 at http://")


@pytest.mark.parametrize(("minor", "verdict"), [("30", Verdict.FAIL), ("31", Verdict.OK), ("34+", Verdict.OK)])
def test_kubernetes_must_be_new_enough(minor: str, verdict: Verdict) -> None:
    assert checks.version({"major": "1", "minor": minor}, "https://a").verdict is verdict


@pytest.mark.parametrize(("found", "said"), [(None, "it never ran"), (lease(NOW, holder=""), "nobody holds its Lease")])
def test_an_operator_that_does_not_lead(found: dict[str, Any] | None, said: str) -> None:
    finding = checks.lease(found, namespace="kinema-system", now=NOW)
    assert finding.verdict is Verdict.FAIL
    assert said in finding.said


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([], "no node has its labels nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3"),
        ([node("a", ready="False")], "none of its 1 node is ready"),
    ],
)
def test_pools_without_nodes(nodes: list[dict[str, Any]], said: str) -> None:
    finding = checks.pools([{"metadata": {"name": "h100"}, "spec": jobs.POOL}], nodes)[0]
    assert finding.verdict is Verdict.WARN
    assert said in finding.said


def test_without_pools_no_job_can_run() -> None:
    assert "no job can run" in checks.pools([], [])[0].said
