# SPDX-License-Identifier: Apache-2.0
"""The processes of a run, and the model spread over them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import ReplicateModule, replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from kinema_api.settings import Precision, TrainSettings
from kinema_trainer.device import Device
from kinema_trainer.models import Adapter, kernels, recompute
from kinema_trainer.optim import lora
from kinema_trainer.optim.optimizer import local
from kinema_trainer.parallel import collectives
from kinema_trainer.parallel.collectives import Axis, Use
from kinema_trainer.parallel.mesh import CUT, Mesh

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
        return collectives.sum_over(Use.LOSS, torch.tensor(values, dtype=torch.float64), Axis()).tolist()

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


def build(
    adapter: Adapter, config: Mapping[str, Any], *, device: Device, mesh: Mesh, settings: TrainSettings
) -> nn.Module:
    """Build a transformer without weights, spread over the processes of a mesh.

    Parameters are float32 and gradients are summed in float32; each block is gathered when it is needed.
    """
    return fill(adapter, outline(adapter, config, mesh=mesh, settings=settings), device=device)


def outline(adapter: Adapter, config: Mapping[str, Any], *, mesh: Mesh, settings: TrainSettings) -> nn.Module:
    """A transformer that is spread over the processes of a mesh, on the meta device: it takes no memory."""
    with torch.device("meta"):
        model = adapter.build(config)
    adapter.prepare(model)
    cuts = adapter.cuts(model)
    if mesh.matrices is not None:
        cut(model, cuts, mesh.matrices)
    if settings.lora.enabled:
        lora.inject(model, settings.lora, defaults=adapter.lora_targets, cuts=cuts, mesh=mesh)
    kernels.choose_attention(model, settings.attention)
    recompute.apply(adapter.blocks(model), settings.recompute)
    if settings.compile:
        kernels.compile_blocks(adapter.blocks(model))
    if mesh.data is not None:
        _spread(adapter, model, data=mesh.data, precision=settings.precision)
    return model


def fill(adapter: Adapter, model: nn.Module, *, device: Device) -> nn.Module:
    """Give an outlined transformer its memory, and the buffers that no checkpoint holds."""
    model.to_empty(device=device.device)
    adapter.restore_buffers(model, device.device)
    return model.train()


def wrapped(precision: Precision) -> bool:
    """Whether FSDP2 is needed for the number format alone.

    A single process has nothing to split and float32 nothing to cast: the wrapper would only copy, 5 % of a CPU step.
    """
    return precision is not Precision.FP32


def cut(model: nn.Module, cuts: Mapping[str, int], mesh: DeviceMesh) -> None:
    """Cut parameters over the tensor processes, each along its dimension; the others stay whole in every process."""
    for name, dim in cuts.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        parameter = module.get_parameter(leaf)
        part = distribute_tensor(parameter.detach(), mesh, [Shard(dim)])
        setattr(module, leaf, nn.Parameter(part, requires_grad=parameter.requires_grad))


def _spread(adapter: Adapter, model: nn.Module, *, data: DeviceMesh, precision: Precision) -> None:
    """Wrap blocks and model: FSDP2 where parameters are cut, its replicating sibling where each has a whole copy."""
    # Inputs are not cast at module boundaries: that would round timesteps and rotary tables to bfloat16.
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[precision] if precision is Precision.BF16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    names = data.mesh_dim_names
    assert names is not None
    wrap: Callable[..., Any] = fully_shard if CUT in names else replicate
    for module in adapter.float32_modules(model):
        wrap(module, mesh=data, mp_policy=exact)
    for block in adapter.blocks(model):
        wrap(block, mesh=data, mp_policy=policy)
    wrap(model, mesh=data, mp_policy=policy)
    for unit in units(model):
        # The loss is divided by the samples of the whole step, so gradients are added up, never averaged.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def units(model: nn.Module) -> list[FSDPModule]:
    """What FSDP2 has wrapped."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def begin_pass(model: nn.Module, *, last: bool) -> None:
    """Say whether a pass is the last of its step: before that, copies of a parameter need not exchange gradients.

    What is cut is added up in every pass, since nobody has room for whole gradients.
    """
    if isinstance(model, ReplicateModule):
        model.set_requires_gradient_sync(last)
    elif isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)


def complete_gradients(adapter: Adapter, model: nn.Module, mesh: Mesh) -> None:
    """Add up what the backward passes of a step have left in parts.

    With `sequence`, each tensor process has its own tokens' share of the gradients of uncut parameters.
    """
    if not mesh.layout.sizes.sequence:
        return
    whole = adapter.cuts(model).keys() | lora.whole_gradients(model)
    parts = [
        local(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and name not in whole and not adapter.whole_batch(name)
    ]
    if not parts:
        return
    joined = torch.cat([part.flatten() for part in parts])
    collectives.sum_over(Use.SEQUENCE_PARAMETERS, joined, mesh.tensor)
    for part, sum_ in zip(parts, joined.split([part.numel() for part in parts]), strict=True):
        part.copy_(sum_.view_as(part))
