# SPDX-License-Identifier: Apache-2.0
"""The manifests of the features Job and the training PyTorchJob, for each kind of accelerator."""

from __future__ import annotations

import os

import pytest
import yaml

from kinema_api.names import Stage
from kinema_api.pool import Fabric, PodSecurity
from kinema_operator.observed import Raw

from tests.unit.manifests.golden import (
    FOLDER,
    OBJECT_STORE,
    POOLS,
    STAGES,
    built,
    manifest,
    object_store,
    pool,
    render,
)

pytestmark = pytest.mark.unit

CASES = [(pool, stage) for pool in POOLS for stage in STAGES]


@pytest.mark.parametrize(("pool", "stage"), CASES, ids=[f"{pool}-{stage}" for pool, stage in CASES])
def test_manifest_is_the_golden_one(pool: str, stage: Stage) -> None:
    compare(f"{pool}-{stage}", manifest(pool, stage))


def test_manifest_over_object_storage_is_the_golden_one() -> None:
    compare("object-store-train", object_store())


def compare(name: str, made: Raw) -> None:
    path = FOLDER / f"{name}.yaml"
    text = render(made)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert yaml.safe_load(text) == made, "the renderer must not change the manifest"
    assert path.read_text() == text, "run UPDATE_GOLDEN=1 pytest tests/unit/manifests and read the difference"


def test_no_ascend_variable_reaches_another_pool() -> None:
    assert "HCCL" not in (FOLDER / "nvidia-8gpu-train.yaml").read_text()
    assert "NCCL_" not in (FOLDER / "cpu-train.yaml").read_text()


def test_features_workers_take_one_device_each() -> None:
    container = manifest("nvidia-8gpu", Stage.FEATURES)["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_only_a_gang_of_several_nodes_books_the_fabric() -> None:
    features = manifest("nvidia-8gpu", Stage.FEATURES)["spec"]["template"]["spec"]["containers"][0]
    train = manifest("nvidia-8gpu", Stage.TRAIN)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert not [name for name in features["resources"]["limits"] if name.startswith("rdma/")]
    assert [name for name in train["containers"][0]["resources"]["limits"] if name.startswith("rdma/")]


@pytest.mark.parametrize("stage", [Stage.CHECK, Stage.PREPARE, Stage.CONVERT, Stage.EXPORT])
def test_stages_that_only_read_and_write_book_no_accelerator(stage: Stage) -> None:
    container = manifest("nvidia-8gpu", stage)["spec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def pod(child: Raw) -> Raw:
    template: Raw = child["spec"].get("template") or child["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return template


def adding(**template: object) -> Raw:
    """The job over object storage, with other additions for every stage."""
    return {**OBJECT_STORE, "defaults": {"pool": "ascend-8npu", "nodes": 2, "podTemplate": template}, "stages": {}}


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_sees_each_secret_once_and_cannot_write_it(stage: Stage) -> None:
    spec = pod(built(OBJECT_STORE, stage=stage))["spec"]
    volumes = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert [(volume["secretName"], volume["optional"]) for volume in volumes] == [("hub", True), ("minio", True)]
    mounts = {mount["mountPath"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert all(mounts[f"/kinema/secrets/{name}"]["readOnly"] for name in ("hub", "minio"))


def test_scratch_is_only_where_something_is_staged_and_has_the_users_limit() -> None:
    volumes = {volume["name"]: volume for volume in pod(built(OBJECT_STORE, stage=Stage.PREPARE))["spec"]["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": "200Gi"}
    volumes = {volume["name"]: volume for volume in pod(built(adding(), stage=Stage.PREPARE))["spec"]["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {}
    assert "scratch" not in {volume["name"] for volume in pod(manifest("cpu", Stage.TRAIN))["spec"]["volumes"]}


def test_the_stages_additions_win_over_those_of_every_stage() -> None:
    train, prepare = pod(object_store()), pod(built(OBJECT_STORE, stage=Stage.PREPARE))
    assert (train["metadata"]["labels"]["cost-center"], prepare["metadata"]["labels"]["cost-center"]) == ("43", "42")
    assert train["spec"]["terminationGracePeriodSeconds"] == 600
    assert prepare["spec"]["terminationGracePeriodSeconds"] == 30
    assert "priorityClassName" not in prepare["spec"]


def test_account_and_pull_secrets_reach_every_stage() -> None:
    for stage in Stage:
        spec = pod(built(OBJECT_STORE, stage=stage))["spec"]
        assert spec["serviceAccountName"] == "trainer"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["automountServiceAccountToken"] is False


def test_the_pool_wins_over_the_user() -> None:
    taken = pod(manifest("ascend-8npu", Stage.TRAIN))
    selector, env = taken["spec"]["nodeSelector"], taken["spec"]["containers"][0]["env"]
    job = adding(
        labels={key: "mine" for key in pool("ascend-8npu").labels},
        nodeSelector=dict.fromkeys(selector, "mine"),
        env=[{"name": "HCCL_CONNECT_TIMEOUT", "value": "mine"}],
    )
    made = pod(built(job, stage=Stage.TRAIN))
    assert "mine" not in [*made["spec"]["nodeSelector"].values(), *made["metadata"]["labels"].values()]
    found = {variable["name"]: variable.get("value") for variable in made["spec"]["containers"][0]["env"]}
    assert (
        found["HCCL_CONNECT_TIMEOUT"]
        == {variable["name"]: variable.get("value") for variable in env}["HCCL_CONNECT_TIMEOUT"]
    )
    names = [variable["name"] for variable in made["spec"]["containers"][0]["env"]]
    assert len(names) == len(set(names))


def test_the_users_affinity_and_the_nodes_to_avoid_stand_side_by_side() -> None:
    wishes = pod(object_store())["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    keys = [wish["preference"]["matchExpressions"][0]["key"] for wish in wishes]
    assert keys == ["rack", "kubernetes.io/hostname"]
    assert wishes[1]["preference"]["matchExpressions"][0] == {
        "key": "kubernetes.io/hostname",
        "operator": "NotIn",
        "values": ["node-7"],
    }


def test_the_users_affinity_cannot_take_away_the_rule_of_one_member_a_node() -> None:
    rule = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"team": "video"}}}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    fabric = Fabric(host_network=True)
    host = pool("ascend-8npu").model_copy(update={"pod_security": PodSecurity.PRIVILEGED, "fabric": fabric})
    job = adding(affinity={"podAntiAffinity": {required: [rule]}})
    affinity = pod(built(job, stage=Stage.TRAIN, pools={"ascend-8npu": host}))["spec"]["affinity"]
    assert [term["topologyKey"] for term in affinity["podAntiAffinity"][required]] == ["zone", "kubernetes.io/hostname"]
