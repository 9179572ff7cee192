# SPDX-License-Identifier: Apache-2.0
"""A process computes on what its pod was given, or says why it cannot."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from kinema_api.exits import Exit, StageError
from kinema_trainer import device

ENV = "KINEMA_ACCELERATOR"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs, as far as torch says; the list holds those that were made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    return current


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_npu" else find_spec(name))


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("accelerator", "hint"), [("nvidia", r"NVIDIA GPU .*nvidia-smi.*image"), ("ascend", r"Ascend NPU .*npu-smi.*image")]
)
def test_a_promised_accelerator_is_never_replaced_by_the_cpu(accelerator: str, hint: str) -> None:
    with pytest.raises(StageError, match=hint) as caught:
        device.find(environment={ENV: accelerator})
    assert caught.value.code is Exit.USER


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("environment", [{}, {ENV: ""}, {ENV: "cpu"}])
def test_without_accelerators_the_cpu_computes(environment: dict[str, str]) -> None:
    found = device.find(3, environment=environment)
    assert (found.device.type, found.backend, found.name) == ("cpu", "gloo", "cpu")


@pytest.mark.parametrize("environment", [{}, {ENV: "nvidia"}])
def test_each_process_takes_its_own_gpu(gpus: list[torch.device], environment: dict[str, str]) -> None:
    found = device.find(1, environment=environment)
    assert found.device == torch.device("cuda", 1) and gpus == [found.device]
    assert found.backend == "cpu:gloo,cuda:nccl"
    with pytest.raises(StageError, match=r"process 2 .* sees 2") as caught:
        device.find(2, environment=environment)
    assert caught.value.code is Exit.USER


def test_a_cpu_pool_leaves_gpus_alone(gpus: list[torch.device]) -> None:
    assert device.find(environment={ENV: "cpu"}).device.type == "cpu"
    assert gpus == []


@pytest.mark.usefixtures("bare", "gpus")
def test_a_gpu_is_no_npu() -> None:
    with pytest.raises(StageError, match="Ascend NPU"):
        device.find(environment={ENV: "ascend"})


def test_an_unknown_accelerator_is_named() -> None:
    with pytest.raises(StageError, match="KINEMA_ACCELERATOR=tpu: it must be one of nvidia, ascend, cpu"):
        device.find(environment={ENV: "tpu"})
