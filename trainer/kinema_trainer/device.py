# SPDX-License-Identifier: Apache-2.0
"""The accelerator of this process: NVIDIA, Ascend or none. The only module that knows which one it is."""

from __future__ import annotations

import importlib
import importlib.util
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kinema_api.exits import Exit, StageError
from kinema_api.names import ENV_ACCELERATOR
from kinema_api.peaks import peak_of
from kinema_api.pool import Accelerator
from kinema_trainer.threads import cpu_threads

__all__ = ["Device", "cpu_threads", "find"]


@dataclass(frozen=True, slots=True)
class Device:
    """Where this process computes."""

    device: torch.device
    """The torch device."""
    backend: str
    """What `init_process_group` is given: gloo always serves CPU tensors, beside the accelerator's own library."""
    name: str
    """The vendor's name of the device; `cpu` without one."""

    @property
    def peak_flops(self) -> float | None:
        """Dense bfloat16 operations a second; None when unknown."""
        peak = peak_of(self.name)
        return None if peak is None else peak.operations

    @property
    def fused_optimizer(self) -> bool:
        """Whether torch's fused AdamW has a kernel here."""
        return self.device.type in ("cuda", "cpu")

    def memory_peak(self) -> int:
        """The most bytes that this process has allocated on the device; on a CPU, that it has had in memory."""
        if self.device.type == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        module = torch.get_device_module(self.device)
        return int(module.max_memory_allocated())

    def memory_total(self) -> int | None:
        """The bytes of the device; None on a CPU, whose memory is the container's."""
        if self.device.type == "cpu":
            return None
        module = torch.get_device_module(self.device)
        return int(module.mem_get_info(self.device)[1])


def find(local_rank: int = 0, *, environment: Mapping[str, str] = os.environ) -> Device:
    """The device of the process, made current: what the pod was given, or the first there is where nobody says.

    Raises:
        StageError: there is no such device; the CPU never stands in for one that was promised.
    """
    wanted = _wanted(environment)
    if wanted is Accelerator.CPU:
        return Device(device=torch.device("cpu"), backend="gloo", name="cpu")
    if wanted is not Accelerator.ASCEND and torch.cuda.is_available():
        return _take("cuda", torch.cuda, local_rank=local_rank, library="nccl")
    if wanted is Accelerator.NVIDIA:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise _missing("an NVIDIA GPU", image=built, tool="nvidia-smi")
    npu = _npu(required=wanted is Accelerator.ASCEND)
    if npu is not None and npu.is_available():
        return _take("npu", npu, local_rank=local_rank, library="hccl")
    if wanted is Accelerator.ASCEND:
        raise _missing("an Ascend NPU", image="with torch_npu" if npu else "without torch_npu", tool="npu-smi info")
    return find(local_rank, environment={ENV_ACCELERATOR: Accelerator.CPU.value})


def _wanted(environment: Mapping[str, str]) -> Accelerator | None:
    value = environment.get(ENV_ACCELERATOR)
    try:
        return Accelerator(value) if value else None
    except ValueError:
        known = ", ".join(accelerator.value for accelerator in Accelerator)
        raise StageError(Exit.USER, f"{ENV_ACCELERATOR}={value}: it must be one of {known}") from None


def _npu(*, required: bool) -> Any:
    """Ascend's device module; None where torch_npu is not installed."""
    if importlib.util.find_spec("torch_npu") is None:
        return None
    try:
        importlib.import_module("torch_npu")
    except ImportError as error:
        if not required:
            raise
        raise _missing("an Ascend NPU", image=f"with a torch_npu that fails ({error})", tool="npu-smi info") from error
    return torch.get_device_module("npu")


def _take(kind: str, module: Any, *, local_rank: int, library: str) -> Device:
    count = module.device_count()
    if local_rank >= count:
        raise StageError(
            Exit.USER,
            f"process {local_rank} of this pod has no device of its own, the pod sees {count}: set devicesPerNode to"
            " what the node has, and see that the device plugin gives the pod all that it asks for",
        )
    device = torch.device(kind, local_rank)
    module.set_device(device)
    return Device(device=device, backend=f"cpu:gloo,{kind}:{library}", name=module.get_device_name(device))


def _missing(what: str, *, image: str, tool: str) -> StageError:
    return StageError(
        Exit.USER,
        f"the pod was given {what} and finds none; the image has torch {torch.__version__} {image}: see that the node's"
        f" driver works ({tool}), that the driver is new enough for the image, and that the pool names the right image",
    )
