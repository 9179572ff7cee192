# SPDX-License-Identifier: Apache-2.0
"""Attention over a part of the keys, with the log of the sum of exponentials by which parts are put together.

All tensors are [batch, heads, tokens, width]; the log-sum-exp is [batch, heads, tokens], float32. torch's flash kernels
serve where they are; elsewhere plain matrix products, a block of queries at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 26
"""Scores held at a time by the plain way."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The result over these keys alone, and its log-sum-exp."""
    if query.device.type == "cpu" and query.numel() and key.numel():
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        return out, lse
    if _flash(query):
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
        return found[0], found[1]
    return plain(query, key, value)


def attend_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What these keys add to the gradients of queries, keys and values; `out` and `lse` are those over all keys."""
    if query.device.type == "cpu" and query.numel() and key.numel():
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, out, lse, 0.0, False
        )
    if _flash(query):
        return _flash_backward(gradient, query, key, value, out, lse)
    return plain_backward(gradient, query, key, value, out, lse)


def _flash(query: Tensor) -> bool:
    usable = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return query.device.type == "cuda" and usable and query.numel() > 0


def _flash_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # Without dropout the random state is not read.
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    offset = torch.zeros((), dtype=torch.uint64, device=query.device)
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        gradient,
        query,
        key,
        value,
        out,
        lse,
        None,
        None,
        query.shape[2],
        key.shape[2],
        0.0,
        False,
        state,
        offset,
    )


def plain(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """`attend` by matrix products."""
    outs, sums = [], []
    for part in query.split(_block(query, key), dim=2):
        scores = _scores(part, key)
        lse = scores.logsumexp(dim=-1)
        sums.append(lse)
        outs.append(torch.exp(scores - lse[..., None]).to(value.dtype) @ value)
    return torch.cat(outs, dim=2), torch.cat(sums, dim=2)


def plain_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_backward` by matrix products."""
    scale = 1 / math.sqrt(query.shape[-1])
    to_query = torch.empty_like(query)
    to_key, to_value = torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32)
    start, step = 0, _block(query, key)
    while start < query.shape[2]:
        rows = slice(start, start + step)
        part, up = query[:, :, rows], gradient[:, :, rows]
        weights = torch.exp(_scores(part, key) - lse[:, :, rows, None])
        inner = (up.float() * out[:, :, rows].float()).sum(dim=-1, keepdim=True)
        slope = (weights * (up.float() @ value.float().mT - inner) * scale).to(query.dtype)
        to_query[:, :, rows] = slope @ key
        to_key += slope.mT @ part
        to_value += weights.to(value.dtype).mT @ up
        start += step
    return to_query, to_key.to(key.dtype), to_value.to(value.dtype)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    # In float32 as in flash kernels: bfloat16 would round a score of 20 by 0.06 before it goes into the exponent.
    return (query.float() @ key.float().mT) / math.sqrt(query.shape[-1])


def _block(query: Tensor, key: Tensor) -> int:
    batch, heads = query.shape[:2]
    return max(1, BLOCK_ELEMENTS // max(1, batch * heads * key.shape[2]))
