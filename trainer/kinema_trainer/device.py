# SPDX-License-Identifier: Apache-2.0
"""The accelerator of this process: NVIDIA, Ascend or none. The only module that knows which one it is."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import torch

from kinema_trainer.threads import cpu_threads

__all__ = ["Device", "cpu_threads", "find"]

PEAK_FLOPS = {
    "H100": 989.4e12,
    "H200": 989.4e12,
    "H800": 989.4e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "GB300": 2500e12,
}
"""Dense bfloat16 operations a second, from the vendors' data sheets (SXM parts), by a word of the device's name."""


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
        words = self.name.replace("-", " ").split()
        return next((peak for word, peak in PEAK_FLOPS.items() if word in words), None)

    @property
    def fused_optimizer(self) -> bool:
        """Whether torch's fused AdamW has a kernel here."""
        return self.device.type in ("cuda", "cpu")

    def memory_peak(self) -> int | None:
        """The most bytes that were allocated on the device; None on a CPU."""
        if self.device.type == "cpu":
            return None
        module = torch.get_device_module(self.device)
        return int(module.max_memory_allocated())


def find(local_rank: int = 0) -> Device:
    """The device of the process, made current."""
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return Device(device=device, backend="cpu:gloo,cuda:nccl", name=torch.cuda.get_device_name(device))
    if importlib.util.find_spec("torch_npu") is not None:
        importlib.import_module("torch_npu")
        npu = torch.get_device_module("npu")
        if npu.is_available():
            device = torch.device("npu", local_rank % npu.device_count())
            npu.set_device(device)
            return Device(device=device, backend="cpu:gloo,npu:hccl", name=npu.get_device_name(device))
    return Device(device=torch.device("cpu"), backend="gloo", name="cpu")
