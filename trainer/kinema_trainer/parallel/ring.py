# SPDX-License-Identifier: Apache-2.0
"""Ring attention: queries stay, keys and values go round, and the parts are put together by their log-sum-exp.

In the backward pass keys and values go round again, and their gradients with them, until they are home. Follows
"Ring Attention with Blockwise Transformers", arXiv 2310.01889; needs no attention library's own log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kinema_trainer.parallel import collectives, partial_attention
from kinema_trainer.parallel.collectives import Axis, Use
from kinema_trainer.parallel.sequence import Pieces


def ring_attention(query: Tensor, key: Tensor, value: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
    """Self-attention of each sample over the tokens of all processes of an axis.

    Args:
        query: [tokens, heads, width], the process's own, sample by sample.
        key: likewise.
        value: likewise.
        axis: the ring.
        pieces: how many tokens of each sample each process has.
    """
    result: Tensor = _Ring.apply(query, key, value, axis, pieces)
    return result


def _heads_first(tokens: Tensor) -> Tensor:
    """[batch 1, heads, tokens, width] of [tokens, heads, width]."""
    return tokens.transpose(0, 1)[None]


def _tokens_first(tokens: Tensor) -> Tensor:
    return tokens[0].transpose(0, 1)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, axis: Axis, pieces: Pieces) -> Tensor:
        out = torch.zeros_like(query, dtype=torch.float32, memory_format=torch.contiguous_format)
        lse = torch.full(query.shape[:2], -torch.inf, dtype=torch.float32, device=query.device)
        both = torch.stack([key, value])
        own = pieces.lengths[axis.rank]
        for step in range(axis.size):
            source = (axis.rank - step) % axis.size
            ahead = _next(Use.RING_FORWARD, both, axis, pieces, source) if step + 1 < axis.size else None
            queries, sums, outs = query.split(own), lse.split(own), out.split(own)
            parts = both.split(pieces.lengths[source], dim=1)
            for sample, part in enumerate(parts):
                if own[sample] and part.shape[1]:
                    found = partial_attention.attend(*map(_heads_first, (queries[sample], part[0], part[1])))
                    _merge(outs[sample], sums[sample], _tokens_first(found[0]), found[1][0].T)
            if ahead is not None:
                both = ahead.wait()
        result = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.axis, ctx.pieces = axis, pieces
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        axis, pieces = ctx.axis, ctx.pieces
        own = pieces.lengths[axis.rank]
        to_query = torch.zeros_like(query, dtype=torch.float32, memory_format=torch.contiguous_format)
        both = torch.stack([key, value])
        travelling: collectives.Passing | None = None
        still = [tensor.split(own) for tensor in (gradients[0], query, out, lse, to_query)]
        for step in range(axis.size):
            source = (axis.rank - step) % axis.size
            ahead = _next(Use.RING_BACKWARD, both, axis, pieces, source) if step + 1 < axis.size else None
            added = torch.zeros_like(both, dtype=torch.float32)
            parts = both.split(pieces.lengths[source], dim=1)
            sums = added.split(pieces.lengths[source], dim=1)
            for sample, (part, sum_) in enumerate(zip(parts, sums, strict=True)):
                if own[sample] and part.shape[1]:
                    gradient, q, o, exponent, total = (tensors[sample] for tensors in still)
                    found = partial_attention.attend_backward(
                        _heads_first(gradient),
                        _heads_first(q),
                        _heads_first(part[0]),
                        _heads_first(part[1]),
                        _heads_first(o),
                        exponent.T[None].contiguous(),
                    )
                    total += _tokens_first(found[0])
                    sum_[0] += _tokens_first(found[1])
                    sum_[1] += _tokens_first(found[2])
            # What the processes before added comes while this one computes; at the end it is back at its owner.
            so_far = added if travelling is None else added.add_(travelling.wait())
            travelling = _next(Use.RING_GRADIENT, so_far, axis, pieces, source)
            if ahead is not None:
                both = ahead.wait()
        assert travelling is not None
        home = travelling.wait()
        return to_query.to(query.dtype), home[0].to(key.dtype), home[1].to(value.dtype), None, None


def _next(use: Use, tensor: Tensor, axis: Axis, pieces: Pieces, source: int) -> collectives.Passing:
    """Pass on what is of `source`; what comes is of the one before it."""
    coming = pieces.totals[(source - 1) % axis.size]
    return collectives.pass_on(use, tensor, axis, takes=[tensor.shape[0], coming, *tensor.shape[2:]])


def _merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Put a part [tokens, heads, width] together with what there is, in place."""
    both = torch.logaddexp(lse, more_lse)
    out.mul_(torch.exp(lse - both)[..., None]).add_(more * torch.exp(more_lse - both)[..., None])
    lse.copy_(both)
