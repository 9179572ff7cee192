# SPDX-License-Identifier: Apache-2.0
"""What processes exchange in the forward pass, each with its counterpart in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kinema_trainer.parallel import collectives
from kinema_trainer.parallel.collectives import Axis, Use
from kinema_trainer.parallel.sequence import Pieces

Change = Callable[[Tensor], Tensor]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: Change, back: Change) -> Tensor:
        ctx.back = back
        return there(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradients[0]), None, None


def exchanged(tensor: Tensor, *, there: Change, back: Change) -> Tensor:
    """`there(tensor)`, whose gradient is `back` of the result's."""
    result: Tensor = _Exchange.apply(tensor, there, back)
    return result


def shared(tensor: Tensor, axis: Axis) -> Tensor:
    """A tensor that all processes have, each of which uses it for something else: its gradient is their sum."""
    if axis.size == 1:
        return tensor
    return exchanged(
        tensor,
        there=lambda whole: whole.view_as(whole),
        back=lambda gradient: collectives.sum_over(Use.TENSOR_INPUT, _copy(gradient), axis),
    )


def shared_factor(factor: Tensor, axis: Axis) -> Tensor:
    """The same of a parameter: its gradient is added up in float32, as every parameter's is."""
    if axis.size == 1:
        return factor
    return exchanged(
        factor,
        there=lambda whole: whole.view_as(whole),
        back=lambda gradient: collectives.sum_over(Use.ADDITION, _copy(gradient.float()), axis).type_as(gradient),
    )


def summed(tensor: Tensor, axis: Axis) -> Tensor:
    """The sum of the processes' tensors, which all of them use for the same."""
    return exchanged(
        tensor,
        there=lambda part: collectives.sum_over(Use.TENSOR_OUTPUT, _copy(part), axis),
        back=lambda gradient: gradient,
    )


def total(tensor: Tensor, axis: Axis) -> Tensor:
    """The sum of the processes' tensors, which each of them uses for something else."""
    return exchanged(
        tensor,
        there=lambda part: collectives.sum_over(Use.TENSOR_NORM, _copy(part), axis),
        back=lambda gradient: collectives.sum_over(Use.TENSOR_NORM_GRADIENT, _copy(gradient), axis),
    )


def gathered(tokens: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    """The tokens [tokens, width] of all processes of an axis, sample by sample; each uses them for something else."""
    return exchanged(
        tokens,
        there=lambda own: _gather(Use.SEQUENCE_GATHER, own, axis, pieces),
        back=lambda gradient: _scatter(Use.SEQUENCE_GATHER_GRADIENT, gradient, axis, pieces),
    )


def scattered(tokens: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    """This process's part of the sum of the processes' tokens [tokens, width]."""
    return exchanged(
        tokens,
        there=lambda part: _scatter(Use.SEQUENCE_SCATTER, part, axis, pieces),
        back=lambda gradient: _gather(Use.SEQUENCE_SCATTER_GRADIENT, gradient, axis, pieces),
    )


def _gather(use: Use, own: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    longest = max(pieces.totals)
    whole = collectives.gather(use, _padded(own, longest), axis)
    every = whole.unflatten(0, (axis.size, longest))
    parts = [part[:length] for part, length in zip(every, pieces.totals, strict=True)]
    return pieces.merged(parts)


def _scatter(use: Use, tokens: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    longest = max(pieces.totals)
    parts = [_padded(part, longest) for part in pieces.parted(tokens)]
    return collectives.sum_and_split(use, torch.cat(parts), axis)[: pieces.totals[axis.rank]]


def _padded(tokens: Tensor, length: int) -> Tensor:
    if tokens.shape[0] == length:
        return tokens
    return torch.cat([tokens, tokens.new_zeros((length - tokens.shape[0], *tokens.shape[1:]))])


def heads_for_tokens(projections: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    """Queries, keys and values [tokens, 3, heads, width] of more tokens and fewer heads."""
    return exchanged(
        projections,
        there=lambda own: _to_heads(Use.ULYSSES_HEADS, own, axis, pieces),
        back=lambda gradient: _to_tokens(Use.ULYSSES_HEADS_GRADIENT, gradient, axis, pieces),
    )


def tokens_for_heads(attended: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    """Attention's result [tokens, heads, width] of this process's own tokens, and all heads again."""
    return exchanged(
        attended,
        there=lambda own: _to_tokens(Use.ULYSSES_TOKENS, own, axis, pieces),
        back=lambda gradient: _to_heads(Use.ULYSSES_TOKENS_GRADIENT, gradient, axis, pieces),
    )


def _to_heads(use: Use, own: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    length = pieces.totals[axis.rank]
    by_process = torch.stack(own.chunk(axis.size, dim=-2)).flatten(0, 1)
    taken = collectives.trade(use, by_process, axis, gives=[length] * axis.size, takes=pieces.totals)
    return pieces.merged(taken.split(pieces.totals))


def _to_tokens(use: Use, tokens: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    length = pieces.totals[axis.rank]
    by_process = torch.cat(pieces.parted(tokens))
    taken = collectives.trade(use, by_process, axis, gives=pieces.totals, takes=[length] * axis.size)
    return torch.cat(taken.split(length), dim=-2) if length else taken.new_empty(_wide(taken, axis.size))


def _wide(tokens: Tensor, size: int) -> tuple[int, ...]:
    *rest, heads, width = tokens.shape
    return (*rest, heads * size, width)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
