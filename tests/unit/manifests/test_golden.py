# SPDX-License-Identifier: Apache-2.0
"""The manifests of the features Job and the training PyTorchJob, for each kind of accelerator."""

from __future__ import annotations

import os

import pytest
import yaml

from kinema_api.names import Stage

from tests.unit.manifests.golden import FOLDER, POOLS, STAGES, manifest, render

pytestmark = pytest.mark.unit

CASES = [(pool, stage) for pool in POOLS for stage in STAGES]


@pytest.mark.parametrize(("pool", "stage"), CASES, ids=[f"{pool}-{stage}" for pool, stage in CASES])
def test_manifest_is_the_golden_one(pool: str, stage: Stage) -> None:
    path = FOLDER / f"{pool}-{stage}.yaml"
    text = render(manifest(pool, stage))
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert yaml.safe_load(text) == manifest(pool, stage), "the renderer must not change the manifest"
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
