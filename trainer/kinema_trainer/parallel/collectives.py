# SPDX-License-Identifier: Apache-2.0
"""Everything that processes exchange during a step, beside what FSDP does by itself.

Every exchange goes through these functions and says what it is for, so that a test can break each of them alone.
Equal tensors are exchanged whole; parts of unequal length are padded where a library wants equal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch.distributed as dist
from torch import Tensor


class Use(StrEnum):
    """What an exchange is for."""

    TENSOR_INPUT = "tensor: gradient of what the column-cut matrices share"
    TENSOR_OUTPUT = "tensor: sum of the row-cut matrices' results"
    TENSOR_NORM = "tensor: sum of squares of queries and keys over all heads"
    TENSOR_NORM_GRADIENT = "tensor: gradient of the sum of squares"
    ADDITION = "tensor: gradient of the factor of a low-rank addition that is not cut"
    SEQUENCE_GATHER = "sequence: tokens before the column-cut matrices"
    SEQUENCE_GATHER_GRADIENT = "sequence: gradient of the gathered tokens"
    SEQUENCE_SCATTER = "sequence: sum and split of the row-cut matrices' results"
    SEQUENCE_SCATTER_GRADIENT = "sequence: gradient of the split results"
    SEQUENCE_PARAMETERS = "sequence: gradients of parameters that every tensor process has"
    ULYSSES_HEADS = "ulysses: tokens for heads, before attention"
    ULYSSES_HEADS_GRADIENT = "ulysses: gradient of queries, keys and values"
    ULYSSES_TOKENS = "ulysses: heads for tokens, after attention"
    ULYSSES_TOKENS_GRADIENT = "ulysses: gradient of attention's result"
    RING_FORWARD = "ring: keys and values, passed on in the forward pass"
    RING_BACKWARD = "ring: keys and values, passed on in the backward pass"
    RING_GRADIENT = "ring: gradients of keys and values, passed on to their owner"
    NORM = "clip: sum of squares of the gradients' parts"
    LOSS = "loop: sums of losses and of requests to stop"


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """This process and its neighbours on one axis; without a group it is about all processes."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    def neighbour(self, step: int) -> int:
        """The global rank of the process `step` places further round the axis."""
        assert self.group is not None
        return dist.get_global_rank(self.group, (self.rank + step) % self.size)


def sum_over(use: Use, tensor: Tensor, axis: Axis) -> Tensor:
    """Add up a tensor over an axis, in place."""
    dist.all_reduce(tensor, group=axis.group)
    return tensor


def gather(use: Use, tensor: Tensor, axis: Axis) -> Tensor:
    """The equal tensors of all processes of an axis, one behind the other."""
    whole = tensor.new_empty((axis.size * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather_into_tensor(whole, tensor.contiguous(), group=axis.group)
    return whole


def sum_and_split(use: Use, tensor: Tensor, axis: Axis) -> Tensor:
    """This process's part, of equal ones along the first dimension, of the sum over an axis."""
    part = tensor.new_empty((tensor.shape[0] // axis.size, *tensor.shape[1:]))
    dist.reduce_scatter_tensor(part, tensor.contiguous(), group=axis.group)
    return part


def trade(use: Use, tensor: Tensor, axis: Axis, *, gives: Sequence[int], takes: Sequence[int]) -> Tensor:
    """Give each process of an axis its rows, and take what each has for this one, in their order."""
    taken = tensor.new_empty((sum(takes), *tensor.shape[1:]))
    dist.all_to_all_single(taken, tensor.contiguous(), list(takes), list(gives), group=axis.group)
    return taken


@dataclass(frozen=True, slots=True)
class Passing:
    """A tensor on its way round a ring."""

    coming: Tensor
    works: Sequence[dist.Work]
    going: Tensor

    def wait(self) -> Tensor:
        """The tensor that came."""
        for work in self.works:
            work.wait()
        return self.coming


def pass_on(use: Use, tensor: Tensor, axis: Axis, *, takes: Sequence[int]) -> Passing:
    """Give a tensor to the next process of an axis, and begin to take one of shape `takes` from the one before."""
    going, coming = tensor.contiguous(), tensor.new_empty(tuple(takes))
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, going, axis.neighbour(1), group=axis.group),
            dist.P2POp(dist.irecv, coming, axis.neighbour(-1), group=axis.group),
        ]
    )
    return Passing(coming=coming, works=works, going=going)
