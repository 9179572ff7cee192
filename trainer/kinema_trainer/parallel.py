# SPDX-License-Identifier: Apache-2.0
"""The processes of a run, and the model spread over them by FSDP2."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from kinema_api.settings import Precision
from kinema_trainer.device import Device
from kinema_trainer.models import Adapter

TIMEOUT = datetime.timedelta(minutes=15)
DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a run."""

    rank: int
    world: int
    background: dist.ProcessGroup
    """A gloo group of its own for writers in other threads: collectives of two threads may not mix in one group."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def total(self, values: list[float]) -> list[float]:
        """The sum of each value over all processes, on the CPU."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def tell(self, value: Any) -> Any:
        """The leader's value, in every process."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def meet(self) -> None:
        """Wait for all processes."""
        self.total([0.0])


def join(device: Device) -> Team:
    """Enter the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(device.backend, rank=rank, world_size=world, timeout=TIMEOUT)
    background = dist.new_group(backend="gloo")
    assert isinstance(background, dist.ProcessGroup)
    return Team(rank=rank, world=world, background=background)


def shard(
    adapter: Adapter, config: Mapping[str, Any], *, device: Device, world: int, precision: Precision, recompute: bool
) -> nn.Module:
    """Build a transformer without weights, split over all processes where there are several.

    Parameters are float32 and gradients are averaged in float32; each block is gathered when it is needed.
    """
    with torch.device("meta"):
        model = adapter.build(config)
    if recompute:
        adapter.recompute(model)
    # A single process has nothing to split and float32 nothing to cast: the wrapper would only copy, 5 % of a CPU step.
    if world > 1 or precision is not Precision.FP32:
        _split(adapter, model, device=device, world=world, precision=precision)
    model.to_empty(device=device.device)
    adapter.restore_buffers(model, device.device)
    return model.train()


def _split(adapter: Adapter, model: nn.Module, *, device: Device, world: int, precision: Precision) -> None:
    """Wrap blocks and model in FSDP2."""
    mesh = init_device_mesh(device.device.type, (world,))
    # Inputs are not cast at module boundaries: that would round timesteps and rotary tables to bfloat16.
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[precision] if precision is Precision.BF16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in adapter.float32_modules(model):
        fully_shard(module, mesh=mesh, mp_policy=exact)
    for block in adapter.blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, sharing its memory."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
