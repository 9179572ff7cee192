# SPDX-License-Identifier: Apache-2.0
"""The jobs that the benchmarks of the control plane compare, and how their figures are made."""

from __future__ import annotations

import os

import pytest

from bench.operator_memory import idle, memory
from bench.operator_memory import side as memory_side
from bench.plane import PYTORCH, VTJ, gang, vtj
from bench.reconcile_latency import Kind, p99
from kinema_api.job import JobSpec
from kinema_api.names import LABEL_JOB_UID


def test_jobs_are_valid_and_both_can_be_suspended() -> None:
    assert JobSpec.model_validate(vtj("a")["spec"]).policy.suspend is False
    assert JobSpec.model_validate(vtj("a", suspend=True)["spec"]).policy.suspend is True
    assert gang("a", suspend=True)["spec"]["runPolicy"] == {"suspend": True}
    assert "runPolicy" not in gang("a")["spec"]


def test_the_pods_of_both_are_alike() -> None:
    pod = gang("a", workers=1)["spec"]["pytorchReplicaSpecs"]
    assert sorted(pod) == ["Master", "Worker"]
    template = pod["Master"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert container["image"] == "kinema/stage:1"
    assert "labels" not in template["metadata"]


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (50, 49), (100, 98), (200, 197)])
def test_p99_is_a_value_that_was_measured(count: int, expected: int) -> None:
    assert p99([float(number) for number in range(count)]) == expected


def test_a_side_counts_all_rounds() -> None:
    kind = Kind("PyTorchJob", path=PYTORCH, label="x", key="name")
    kind.rounds = [[0.1, 0.9], [0.1, 0.5], [0.1, 4.0]]
    kind.processors = [{"etcd": 1.0, "kube-apiserver": 2.0}, {"etcd": 1.0}, {"etcd": 7.0}]
    side = kind.side()
    assert side.value == 4.0
    assert side.raw["p99Seconds"] == [0.9, 0.5, 4.0]
    assert side.raw["medianProcessorSeconds"] == 3.0


def test_each_kind_makes_its_own_jobs() -> None:
    assert Kind("a", path=VTJ, label=LABEL_JOB_UID, key="uid").manifest(3)["kind"] == "VideoTrainingJob"
    assert Kind("b", path=PYTORCH, label="x", key="name").manifest(3)["metadata"]["name"] == "gang-3"


def test_idle_is_what_the_status_says() -> None:
    def job(status: str) -> dict[str, object]:
        return {
            "status": {"conditions": [{"type": "Created", "status": "True"}, {"type": "Suspended", "status": status}]}
        }

    assert idle(job("True"))
    assert not idle(job("False"))
    assert not idle({})


def test_memory_is_read_of_a_process_and_the_last_samples_count() -> None:
    mine = memory(os.getpid())
    assert mine["Rss"] >= mine["Anonymous"] > 1
    raw = {"empty": [{"Rss": 1.0}], "idle": [{"Rss": value} for value in (9.0, 5.0, 4.0, 6.0)]}
    assert memory_side("x", raw).value == 5.0
