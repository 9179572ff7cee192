# SPDX-License-Identifier: Apache-2.0
"""Low-rank additions to linear layers, right under every layout: y = W x + alpha / rank B A x.

peft makes the layers; what they compute is here, since a layer may have part of its matrices only. Tensor parallelism
cuts the factor that lies on the cut side of W, and every process has all of the other one: its gradient is the sum over
the tensor processes, which `exchange.shared_factor` gives in the backward pass. Nothing has to be added up afterwards.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn import functional

from kinema_api.exits import Exit, StageError
from kinema_api.lora import Lora, ends_with
from kinema_trainer.parallel import exchange
from kinema_trainer.parallel.collectives import Axis
from kinema_trainer.parallel.mesh import Mesh

ADAPTER = "default"
"""Peft's name of the one set of additions."""
_BASE, _KEEP = ".base_layer.", "keep"


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a layer's addition is computed."""

    name: str
    """The layer, as the pretrained model names it."""
    cut: int | None
    """The dimension along which W is cut."""
    axis: Axis
    """The processes that share it."""
    width: int
    """Input features of the whole layer."""


def inject(model: nn.Module, settings: Lora, *, defaults: Sequence[str], cuts: Mapping[str, int], mesh: Mesh) -> None:
    """Freeze a model, whose matrices may be cut already, and give its layers additions without values.

    Args:
        model: the transformer.
        settings: which layers, and how wide.
        defaults: the ends of layers' names when the settings name none.
        cuts: the dimension along which tensor parallelism cuts a parameter, by name.
        mesh: the processes.

    Raises:
        StageError: a target is no linear layer of the model.
    """
    names = targets(model, settings.targets or defaults)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names, bias="none")  # type: ignore[arg-type]
    with torch.device("meta"):
        inject_adapter_in_model(config, model, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    for name, layer in _layers(model):
        cut = cuts.get(f"{name}.weight") if mesh.matrices is not None else None
        # Of a matrix that is cut, peft knows this process's part, torch the whole shape.
        place = _Place(name=name, cut=cut, axis=mesh.tensor, width=layer.base_layer.weight.shape[1])
        if cut is not None:
            _cut(layer, place, mesh)
        if settings.dropout > 0:
            width = place.width // (place.axis.size if cut == 1 else 1)
            layer.register_buffer(_KEEP, torch.ones(width, device="meta"), persistent=False)
        layer.kinema_place = place
        vars(layer)["forward"] = MethodType(_forward, layer)


def targets(model: nn.Module, ends: Sequence[str]) -> list[str]:
    """The linear layers whose names end so.

    Raises:
        StageError: there is none for one of the ends.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found: dict[str, None] = {}
    for end in ends:
        matches = [name for name in linear if ends_with(name, end)]
        if not matches:
            kinds = sorted({name.split(".", 2)[2] for name in linear if name.startswith("blocks.")})
            raise StageError(
                Exit.USER,
                f"stages.train.lora.targets: no linear layer's name ends with {end}; those of a block are"
                f" {', '.join(kinds)}",
            )
        found |= dict.fromkeys(matches)
    return list(found)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every layer with an addition, by the pretrained layer's name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _cut(layer: Any, place: _Place, mesh: Mesh) -> None:
    """Cut the factor that touches the cut side of W."""
    assert mesh.matrices is not None and place.cut is not None
    outputs, inputs = layer.base_layer.weight.shape
    rank = layer.r[ADAPTER]
    factor, shape = (layer.lora_B, (outputs, rank)) if place.cut == 0 else (layer.lora_A, (rank, inputs))
    whole = torch.empty(shape, dtype=torch.float32, device="meta")
    factor[ADAPTER].weight = nn.Parameter(distribute_tensor(whole, mesh.matrices, [Shard(place.cut)]))


def _forward(layer: Any, rows: Tensor) -> Tensor:
    """A whole layer and its addition."""
    result: Tensor = layer.base_layer(rows)
    return result + addition(layer, rows)


def added(layer: nn.Module, rows: Tensor, result: Tensor) -> Tensor:
    """The result of a cut layer and its addition, if it has one; of row-cut layers both are one part of the sum."""
    return result + addition(layer, rows) if isinstance(layer, LoraLayer) else result


def addition(layer: Any, rows: Tensor) -> Tensor:
    """What a layer adds: for a cut one, its part."""
    place: _Place = layer.kinema_place
    first, second = _local(layer.lora_A[ADAPTER].weight), _local(layer.lora_B[ADAPTER].weight)
    if place.cut == 0:
        first = exchange.shared_factor(first, place.axis)
    elif place.cut == 1:
        second = exchange.shared_factor(second, place.axis)
    if layer.training and hasattr(layer, _KEEP):
        rows = rows * layer.keep.to(rows.dtype)
    return functional.linear(functional.linear(rows, first), second) * layer.scaling[ADAPTER]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def begin_step(model: nn.Module, settings: Lora, *, seed: int, step: int) -> None:
    """Draw the features that each addition leaves out in a step: a function of seed, step and layer."""
    if not settings.enabled or settings.dropout == 0:
        return
    for name, layer in _layers(model):
        place: _Place = layer.kinema_place
        stream = _stream("kinema-drop", seed, step, name)
        kept = torch.rand(place.width, generator=stream) >= settings.dropout
        keep = kept.float() / (1 - settings.dropout)
        if place.cut == 1:
            keep = keep.chunk(place.axis.size)[place.axis.rank]
        layer.keep.copy_(keep)


@torch.no_grad()
def initialise(model: nn.Module, *, seed: int, zero: bool = True) -> None:
    """Values that add nothing at first: A is uniform as peft draws it, B is 0; the same under every layout.

    Args:
        model: with additions.
        seed: decides A.
        zero: else B is drawn too.
    """
    for name, parameter in trained(model).items():
        width = parameter.shape[1]
        if not zero or name.endswith(".lora_A.weight"):
            bound = 1 / math.sqrt(width)
            whole = (torch.rand(parameter.shape, generator=_stream("kinema-lora", seed, 0, name)) * 2 - 1) * bound
        else:
            whole = torch.zeros(parameter.shape)
        _local(parameter).detach().copy_(_part(whole, parameter))


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that is cut like another one."""
    if not isinstance(like, DTensor):
        return whole
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    for dim, (size, start) in enumerate(zip(shape, offset, strict=True)):
        whole = whole.narrow(dim, start, size) if size else whole.narrow(dim, 0, 0)
    return whole


def _stream(purpose: str, seed: int, step: int, name: str) -> torch.Generator:
    data = struct.pack("<qq", seed, step) + name.encode()
    digest = hashlib.blake2b(data, digest_size=8, person=purpose.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def stored(name: str) -> str:
    """The name of a parameter in checkpoints: a pretrained one as it was, an addition as diffusers writes it."""
    return name.replace(_BASE, ".").replace(f".{ADAPTER}.", ".")


def pretrained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that come with the weights, by stored name."""
    return {stored(name): parameter for name, parameter in model.named_parameters() if ".lora_" not in name}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by stored name: all, or the additions."""
    return {stored(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def whole_gradients(model: nn.Module) -> frozenset[str]:
    """The parameters, by the model's name, whose gradient the backward pass adds up over the tensor processes."""
    cut = [name for name, layer in _layers(model) if layer.kinema_place.cut is not None]
    return frozenset(f"{name}.lora_{factor}.{ADAPTER}.weight" for name in cut for factor in "AB")
