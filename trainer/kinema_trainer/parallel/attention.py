# SPDX-License-Identifier: Apache-2.0
"""Attention within each sample of a batch, over however many processes share its tokens.

Tensors are [tokens, heads, width], the samples' tokens side by side. Diffusers' dispatcher picks the kernel where all
keys of a sample are in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from kinema_trainer.parallel import exchange
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.parallel.ring import ring_attention
from kinema_trainer.parallel.sequence import Share, counts


def self_attention(query: Tensor, key: Tensor, value: Tensor, *, share: Share, mesh: Mesh, backend: Any) -> Tensor:
    """Each token attends to all tokens of its sample, wherever they are."""
    if mesh.ulysses.size > 1:
        projections = exchange.heads_for_tokens(torch.stack([query, key, value], 1), mesh.ulysses, share.ulysses)
        query, key, value = projections.unbind(1)
    if mesh.ring.size > 1:
        result = ring_attention(query, key, value, mesh.ring, share.ring)
    else:
        lengths = share.ulysses.samples if mesh.ulysses.size > 1 else counts(share.inner)
        result = attention(query, key, value, queries=lengths, keys=lengths, backend=backend)
    return exchange.tokens_for_heads(result, mesh.ulysses, share.ulysses) if mesh.ulysses.size > 1 else result


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, queries: Sequence[int], keys: Sequence[int], backend: Any
) -> Tensor:
    """The tokens of each sample attend to that sample's keys.

    Args:
        query: [tokens, heads, width].
        key: [other tokens, heads, width].
        value: likewise.
        queries: how many tokens each sample has.
        keys: how many keys each sample has; 0 leaves a sample's result at 0.
        backend: diffusers' name of the kernel; None for its default.
    """
    count = len(queries)
    if _equal(queries) and _equal(keys) and queries[0] and keys[0]:
        # One call for samples of equal lengths.
        batched = [tokens.unflatten(0, (count, -1)) for tokens in (query, key, value)]
        return _dispatch(batched[0], batched[1], batched[2], backend).flatten(0, 1)
    parts = zip(query.split(list(queries)), key.split(list(keys)), value.split(list(keys)), strict=True)
    return torch.cat([_one(q, k, v, backend) for q, k, v in parts])


def _one(query: Tensor, key: Tensor, value: Tensor, backend: Any) -> Tensor:
    if not key.shape[0] or not query.shape[0]:
        return _nothing(query, key, value)
    return _dispatch(query[None], key[None], value[None], backend)[0]


def _nothing(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without queries or without keys: zeros, whose gradient is 0 and not missing.

    A process without tokens of any sample of a pack has to have a gradient of every parameter all the same: FSDP
    exchanges those that there are, and processes that exchange different ones fail or add up what does not belong
    together.
    """
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    return ((query @ key.mT).softmax(dim=-1) @ value).transpose(0, 1)


def _equal(lengths: Sequence[int]) -> bool:
    return len(set(lengths)) == 1


def _dispatch(query: Tensor, key: Tensor, value: Tensor, backend: Any) -> Tensor:
    """[samples, tokens, heads, width] of the same."""
    result: Tensor = dispatch_attention_fn(query, key, value, dropout_p=0.0, is_causal=False, backend=backend)
    return result.type_as(query)
