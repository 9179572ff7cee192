# SPDX-License-Identifier: Apache-2.0
"""Breaks one exchange of the engine, in one of several ways, so that the tests can show that they would notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as fsdp

from kinema_trainer.parallel import collectives
from kinema_trainer.parallel.collectives import Axis, Passing, Use
from kinema_trainer.parallel.mesh import CUT, REPLICATE, Mesh


class Kind(StrEnum):
    """How an exchange is broken."""

    LEFT_OUT = "left out"
    WRONG_GROUP = "wrong group"
    MEAN = "mean for sum"
    WRONG_WAY = "wrong way round"


GATHERED = "FSDP2: parameters, gathered"
REDUCED = "FSDP2: gradients, summed and split"
COPIED = "copies: gradients, summed"
Layout = dict[str, Any]
TENSOR: Layout = {"tensor": 2, "ulysses": 2}
SEQUENCE: Layout = {"tensor": 2, "sequence": True, "ulysses": 2}
RING: Layout = {"ring": 2, "tensor": 2}
SHARD: Layout = {"tensor": 2, "shard": 2}
MOVED = (Kind.LEFT_OUT, Kind.WRONG_GROUP)
SUMMED = (*MOVED, Kind.MEAN)


@dataclass(frozen=True, eq=False)
class Mutation:
    """One way to break one exchange, and a layout in which it should show."""

    exchange: str
    kind: Kind
    layout: Layout
    lora: bool = False
    """Train low-rank additions."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of `stages.train`."""
        return {"lora": {"enabled": True, "rank": 4}} if self.lora else {}

    def __str__(self) -> str:
        return f"{self.exchange}, {self.kind}"


def _all() -> Iterator[Mutation]:
    table: list[tuple[str, Layout, Sequence[Kind]]] = [
        (Use.TENSOR_INPUT, TENSOR, SUMMED),
        (Use.TENSOR_OUTPUT, TENSOR, SUMMED),
        (Use.TENSOR_NORM, TENSOR, SUMMED),
        (Use.TENSOR_NORM_GRADIENT, TENSOR, SUMMED),
        (Use.ADDITION, TENSOR, SUMMED),
        (Use.ADDITION, SEQUENCE, (Kind.LEFT_OUT, Kind.MEAN)),
        (Use.SEQUENCE_GATHER, SEQUENCE, MOVED),
        (Use.SEQUENCE_GATHER_GRADIENT, SEQUENCE, SUMMED),
        (Use.SEQUENCE_SCATTER, SEQUENCE, SUMMED),
        (Use.SEQUENCE_SCATTER_GRADIENT, SEQUENCE, MOVED),
        (Use.SEQUENCE_PARAMETERS, SEQUENCE, SUMMED),
        (Use.ULYSSES_HEADS, TENSOR, MOVED),
        (Use.ULYSSES_HEADS_GRADIENT, TENSOR, MOVED),
        (Use.ULYSSES_TOKENS, TENSOR, MOVED),
        (Use.ULYSSES_TOKENS_GRADIENT, TENSOR, MOVED),
        (Use.RING_FORWARD, RING, MOVED),
        (Use.RING_BACKWARD, RING, MOVED),
        (Use.RING_GRADIENT, RING, MOVED),
        # The other way round, forward passes alone would see the same keys.
        (Use.RING_BACKWARD, {"ring": 4}, (Kind.WRONG_WAY,)),
        (Use.RING_GRADIENT, {"ring": 4}, (Kind.WRONG_WAY,)),
        (Use.NORM, SHARD, SUMMED),
        (Use.NORM, {"shard": 2}, (Kind.LEFT_OUT, Kind.MEAN)),
        (Use.NORM, {"tensor": 2}, (Kind.LEFT_OUT, Kind.MEAN)),
        (Use.LOSS, SHARD, SUMMED),
        (GATHERED, SHARD, MOVED),
        (REDUCED, SHARD, SUMMED),
        (REDUCED, {"ulysses": 2, "shard": 2}, (Kind.LEFT_OUT, Kind.MEAN)),
        (COPIED, {"replicate": 2, "shard": 2}, SUMMED),
        (COPIED, {"replicate": 2, "shard": 1, "tensor": 2}, SUMMED),
        (COPIED, {"ulysses": 2, "ring": 2}, (Kind.LEFT_OUT, Kind.MEAN)),
    ]
    for exchange, layout, kinds in table:
        for kind in kinds:
            yield Mutation(str(exchange), kind, layout, lora=exchange == Use.ADDITION)


MUTATIONS = tuple(_all())
CAUGHT: dict[Mutation, str] = {}
"""What the comparison said of each."""
_mesh: list[Mesh] = []


def know(mesh: Mesh) -> None:
    """Remember the groups that a wrong one can be chosen from."""
    _mesh[:] = [mesh]


def _wrong(group: dist.ProcessGroup | None) -> Axis:
    """Another axis: of the same size where it is not about all processes."""
    mesh = _mesh[0]
    axes = [mesh.tensor, mesh.ulysses, mesh.ring]
    for name in (REPLICATE, CUT):
        if mesh.data is not None and name in (mesh.data.mesh_dim_names or ()):
            part = mesh.data[name]
            axes.append(Axis(size=part.size(), rank=part.get_local_rank(), group=part.get_group()))
    right = dist.get_process_group_ranks(group)
    for axis in axes:
        ranks = dist.get_process_group_ranks(axis.group) if axis.group is not None else []
        if axis.size > 1 and ranks != right and (len(ranks) == len(right) or len(right) == mesh.layout.world):
            return axis
    raise AssertionError("the layout has no other group")


def _group(axis: Axis) -> dist.ProcessGroup:
    assert axis.group is not None
    return axis.group


@contextlib.contextmanager
def broken(what: tuple[str, str] | None) -> Iterator[None]:
    """While this lasts, an exchange is broken."""
    if what is None:
        yield
        return
    exchange, kind = what[0], Kind(what[1])
    with contextlib.ExitStack() as stack:
        if exchange in (GATHERED, REDUCED, COPIED):
            stack.enter_context(_FSDP[exchange](kind))
        for name, change in _OURS.items():
            original = getattr(collectives, name)
            stack.enter_context(mock.patch.object(collectives, name, _only(exchange, kind, original, change)))
        yield


Change = Callable[..., Any]


def _only(exchange: str, kind: Kind, original: Change, change: Change) -> Change:
    def call(use: Use, tensor: Tensor, axis: Axis, **arguments: Any) -> Any:
        if use != exchange:
            return original(use, tensor, axis, **arguments)
        if kind is Kind.WRONG_GROUP:
            return original(use, tensor, _wrong(axis.group), **arguments)
        return change(kind, original, use, tensor, axis, **arguments)

    return call


def _sum_over(kind: Kind, original: Change, use: Use, tensor: Tensor, axis: Axis) -> Tensor:
    if kind is Kind.LEFT_OUT:
        return tensor
    size = axis.size if axis.group is not None else dist.get_world_size()
    result: Tensor = original(use, tensor, axis)
    return result.div_(size)


def _gather(kind: Kind, original: Change, use: Use, tensor: Tensor, axis: Axis) -> Tensor:
    return tensor.repeat(axis.size, *([1] * (tensor.ndim - 1)))


def _sum_and_split(kind: Kind, original: Change, use: Use, tensor: Tensor, axis: Axis) -> Tensor:
    if kind is Kind.LEFT_OUT:
        return tensor.chunk(axis.size)[axis.rank].clone()
    result: Tensor = original(use, tensor, axis)
    return result.div_(axis.size)


def _trade(kind: Kind, original: Change, use: Use, tensor: Tensor, axis: Axis, **arguments: Any) -> Tensor:
    return tensor.clone()


def _pass_on(kind: Kind, original: Change, use: Use, tensor: Tensor, axis: Axis, **arguments: Any) -> Any:
    if kind is Kind.LEFT_OUT:
        return Passing(coming=tensor.clone(), works=(), going=tensor)
    return original(use, tensor, _Reversed(size=axis.size, rank=axis.rank, group=axis.group), **arguments)


class _Reversed(Axis):
    def neighbour(self, step: int) -> int:
        return super().neighbour(-step)


_OURS: dict[str, Change] = {
    "sum_over": _sum_over,
    "gather": _gather,
    "sum_and_split": _sum_and_split,
    "trade": _trade,
    "pass_on": _pass_on,
}


def _gathered(kind: Kind) -> contextlib.AbstractContextManager[Any]:
    original = fsdp.DefaultAllGather.__call__

    def call(self: Any, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        if kind is Kind.WRONG_GROUP:
            return original(self, output_tensor, input_tensor, _group(_wrong(group)), async_op)
        output_tensor.view(group.size(), -1).copy_(input_tensor.flatten().expand(group.size(), -1))
        return None

    return mock.patch.object(fsdp.DefaultAllGather, "__call__", call)


def _reduced(kind: Kind) -> contextlib.AbstractContextManager[Any]:
    original = fsdp.DefaultReduceScatter.__call__

    def call(
        self: Any, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> Any:
        if kind is Kind.LEFT_OUT:
            output_tensor.copy_(input_tensor.view(group.size(), -1)[dist.get_rank(group)])
            return None
        chosen = _group(_wrong(group)) if kind is Kind.WRONG_GROUP else group
        work = original(self, output_tensor, input_tensor, chosen, op, async_op)
        if kind is Kind.MEAN:
            output_tensor.div_(group.size())
        return work

    return mock.patch.object(fsdp.DefaultReduceScatter, "__call__", call)


class _Dist:
    """torch.distributed, but for the sum of copied gradients."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def all_reduce(self, tensor: Tensor, group: Any, op: Any) -> None:
        if self._kind is Kind.LEFT_OUT:
            return
        dist.all_reduce(tensor, group=_wrong(group).group if self._kind is Kind.WRONG_GROUP else group, op=op)
        if self._kind is Kind.MEAN:
            tensor.div_(group.size())


def _copied(kind: Kind) -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(fsdp, "dist", _Dist(kind))


_FSDP: dict[str, Callable[[Kind], contextlib.AbstractContextManager[Any]]] = {
    GATHERED: _gathered,
    REDUCED: _reduced,
    COPIED: _copied,
}
