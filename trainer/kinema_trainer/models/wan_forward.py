# SPDX-License-Identifier: Apache-2.0
"""Wan's forward pass over diffusers' modules, for samples of any shapes side by side and processes that share them.

The arithmetic is that of WanTransformer3DModel and WanTransformerBlock. What differs: tokens of all samples lie in one
sequence [tokens, hidden]; a row of the time table is one noise level, and runs of tokens name their row; attention
stays within a sample; and a process may have some of the tokens, heads and matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kinema_trainer.batch import Batch, Example
from kinema_trainer.objectives import flow
from kinema_trainer.optim import lora
from kinema_trainer.parallel import exchange
from kinema_trainer.parallel.attention import attention, self_attention
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.parallel.sequence import Share, counts

Runs = tuple[tuple[int, int], ...]
"""(row of the time table, tokens) after (row, tokens)."""


@dataclass(frozen=True, eq=False)
class Pack:
    """What every block is told of the batch, beside tensors.

    Args:
        mesh: who shares.
        share: which tokens this process has.
        runs: the noise level of each of its tokens.
        texts: caption tokens of each sample.
        images: image tokens of each sample.
    """

    mesh: Mesh
    share: Share
    runs: Runs
    texts: tuple[int, ...]
    images: tuple[int, ...]


def bind(model: nn.Module) -> None:
    """Let a WanTransformer3DModel and its blocks run the passes of this module, hooks and all."""
    if "forward" in vars(model):
        return
    transformer: Any = model
    transformer.forward = MethodType(_model, model)
    for block in transformer.blocks:
        block.forward = MethodType(_block, block)


def lengths_of(batch: Batch, *, patch: tuple[int, int, int]) -> tuple[int, ...]:
    """Tokens of each sample."""
    return tuple(_tokens(example, patch=patch) for example in batch)


def _tokens(example: Example, *, patch: tuple[int, int, int]) -> int:
    _, frames, height, width = example.latents.shape
    return (frames // patch[0]) * (height // patch[1]) * (width // patch[2])


def local(tensor: Tensor | None) -> Any:
    """This process's part of a parameter that tensor parallelism has cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _model(model: Any, batch: Batch, mesh: Mesh, dtype: torch.dtype) -> Tensor:
    """The prediction for this process's tokens, [tokens, features], in the order of `objectives.flow.tokens`."""
    patch = tuple(model.config.patch_size)
    share = Share(lengths_of(batch, patch=patch), mesh.layout, mesh.rank)
    rows = _embed(model, batch, share, dtype)
    levels, runs = _levels(batch, share, patch=patch)
    text = torch.cat([example.text for example in batch]).to(dtype)
    # One row for each noise level; the caption does not depend on it.
    temb, projection, text, _ = model.condition_embedder(flow.TIMESTEPS * levels, text, None)
    # All blocks add to the gradient of the table: in float32, whatever they compute in.
    projection = projection.float()
    images, image_lengths = _images(model, batch, dtype)
    pack = Pack(
        mesh=mesh, share=share, runs=runs, texts=tuple(len(example.text) for example in batch), images=image_lengths
    )
    if mesh.layout.sizes.sequence:
        temb, projection = exchange.shared(temb, mesh.tensor), exchange.shared(projection, mesh.tensor)
    text = exchange.shared(text, mesh.tensor)
    images = None if images is None else exchange.shared(images, mesh.tensor)
    rotary = _rotary(model.rope, batch, share)
    table = projection.unflatten(1, (6, -1))
    for block in model.blocks:
        rows = block(rows, text, images, table, rotary, pack)
    shift, scale = (local(model.scale_shift_table) + temb.unsqueeze(1)).chunk(2, dim=1)
    rows = _modulated(model.norm_out(rows.float()), shift, scale, runs).type_as(rows)
    prediction: Tensor = linear(model.proj_out, rows)
    return prediction


def _embed(model: Any, batch: Batch, share: Share, dtype: torch.dtype) -> Tensor:
    """This process's tokens, [tokens, hidden]. A convolution whose stride is its kernel is a matrix over patches."""
    patch = tuple(model.config.patch_size)
    inputs = []
    for example, (start, stop) in zip(batch, share.rows, strict=True):
        latents = flow.noisy(example)
        if example.condition.channels is not None:
            latents = torch.cat([latents, example.condition.channels])
        inputs.append(flow.tokens(latents, patch=patch)[start:stop])
    weight = local(model.patch_embedding.weight).permute(0, 2, 3, 4, 1).flatten(1)
    rows: Tensor = F.linear(torch.cat(inputs).to(dtype), weight, local(model.patch_embedding.bias))
    return rows


def _levels(batch: Batch, share: Share, *, patch: tuple[int, int, int]) -> tuple[Tensor, Runs]:
    """The distinct noise levels, [rows], float32, and which tokens have which. Clean frames are at 0."""
    levels = [example.sigma.float() for example in batch]
    runs: list[tuple[int, int]] = []
    for row, (example, (start, stop)) in enumerate(zip(batch, share.rows, strict=True)):
        clean = example.condition.clean
        if clean is None or start == stop:
            runs.append((row, stop - start))
            continue
        plane = example.latents.shape[2] // patch[1] * (example.latents.shape[3] // patch[2])
        for time, given in enumerate(clean.tolist()[:: patch[0]]):
            tokens = min(stop, (time + 1) * plane) - max(start, time * plane)
            if tokens > 0:
                runs.append((len(batch) if given else row, tokens))
    if any(example.condition.clean is not None for example in batch):
        levels.append(torch.zeros_like(levels[0]))
    return torch.stack(levels), _joined(runs)


def _joined(runs: Sequence[tuple[int, int]]) -> Runs:
    """Neighbours of one row as one run."""
    joined: list[tuple[int, int]] = []
    for row, tokens in runs:
        if joined and joined[-1][0] == row:
            joined[-1] = (row, joined[-1][1] + tokens)
        else:
            joined.append((row, tokens))
    return tuple(joined)


def _images(model: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor | None, tuple[int, ...]]:
    """The embedded image tokens of all samples, and how many each has."""
    embedder = model.condition_embedder.image_embedder
    images = [example.condition.image for example in batch]
    embedded = []
    for image in images:
        if image is not None:
            # With position embeddings diffusers takes the pictures of a sample one by one, and lays them side by side.
            pictures = image[None] if embedder.pos_embed is None else image.unflatten(0, (2, -1))
            embedded.append(embedder(pictures.to(dtype)).flatten(0, 1))
    return (torch.cat(embedded) if embedded else None), tuple(0 if image is None else len(image) for image in images)


def _rotary(rope: nn.Module, batch: Batch, share: Share) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each of this process's tokens in attention, [tokens, 1, half a head]."""
    tables: dict[torch.Size, tuple[Tensor, Tensor]] = {}
    parts: list[tuple[Tensor, Tensor]] = []
    for example, (start, stop) in zip(batch, share.inner, strict=True):
        shape = example.latents.shape
        if shape not in tables:
            cos, sin = rope(example.latents[None])
            # Diffusers repeats every angle for the two features that it turns.
            tables[shape] = (cos[0, :, :, 0::2], sin[0, :, :, 1::2])
        cos, sin = tables[shape]
        parts.append((cos[start:stop], sin[start:stop]))
    cosines, sines = zip(*parts, strict=True)
    return torch.cat(cosines), torch.cat(sines)


def _block(
    block: Any,
    rows: Tensor,
    text: Tensor,
    images: Tensor | None,
    table: Tensor,
    rotary: tuple[Tensor, Tensor],
    pack: Pack,
) -> Tensor:
    """One block over this process's tokens [tokens, hidden]."""
    levels = local(block.scale_shift_table) + table
    shift, scale, gate, ff_shift, ff_scale, ff_gate = levels.chunk(6, dim=1)
    inner = _modulated(block.norm1(rows.float()), shift, scale, pack.runs).type_as(rows)
    rows = _gated(rows, _self(block.attn1, inner, rotary, pack), gate, pack.runs)
    inner = block.norm2(rows.float()).type_as(rows)
    rows = rows + _cross(block.attn2, inner, text, images, pack)
    inner = _modulated(block.norm3(rows.float()), ff_shift, ff_scale, pack.runs).type_as(rows)
    return _gated(rows, _feed_forward(block.ffn, inner, pack).float(), ff_gate, pack.runs)


def _modulated(rows: Tensor, shift: Tensor, scale: Tensor, runs: Runs) -> Tensor:
    """Scale and shift each row by its run's level: rows * (1 + scale) + shift; both are [levels, 1, hidden]."""
    return _by_run(lambda part, s, c: part * (1 + c) + s, rows, (shift, scale), runs)


def _gated(rows: Tensor, update: Tensor, gate: Tensor, runs: Runs) -> Tensor:
    """Add update * gate, of each row's run, in float32; the result has the number format of rows."""
    return (rows.float() + _by_run(lambda part, g: part * g, update, (gate,), runs)).type_as(rows)


def _by_run(change: Callable[..., Tensor], rows: Tensor, levels: tuple[Tensor, ...], runs: Runs) -> Tensor:
    """Change each run of rows with its level: nothing as long as the sequence is made of the levels."""
    first = runs[0][1]
    if all(run == (index, first) for index, run in enumerate(runs)) and len(runs) == len(levels[0]):
        return change(rows.unflatten(0, (len(runs), first)), *levels).flatten(0, 1)
    parts = rows.split([tokens for _, tokens in runs])
    return torch.cat(
        [change(part, *(level[row] for level in levels)) for part, (row, _) in zip(parts, runs, strict=True)]
    )


def _self(attn: Any, rows: Tensor, rotary: tuple[Tensor, Tensor], pack: Pack) -> Tensor:
    inner = _entered(rows, pack)
    query, key = _normed_pair(attn, linear(attn.to_q, inner), linear(attn.to_k, inner), pack.mesh)
    query, key, value = (_heads(attn, part, pack.mesh) for part in (query, key, linear(attn.to_v, inner)))
    query, key = _turned(query, *rotary), _turned(key, *rotary)
    attended = self_attention(query, key, value, share=pack.share, mesh=pack.mesh, backend=_backend(attn))
    return _left(attn.to_out, attended.flatten(1), pack)


def _cross(attn: Any, rows: Tensor, text: Tensor, images: Tensor | None, pack: Pack) -> Tensor:
    inner = _entered(rows, pack)
    mesh, lengths = pack.mesh, counts(pack.share.inner)
    query, key = _normed_pair(attn, linear(attn.to_q, inner), linear(attn.to_k, text), mesh)
    query, key, value = (_heads(attn, part, mesh) for part in (query, key, linear(attn.to_v, text)))
    look = partial(attention, query, queries=lengths, backend=_backend(attn))
    attended = look(key, value, keys=pack.texts)
    if images is not None and attn.add_k_proj is not None:
        (image_key,) = _normed_all([(attn.norm_added_k, linear(attn.add_k_proj, images))], mesh)
        image_value = linear(attn.add_v_proj, images)
        attended = attended + look(_heads(attn, image_key, mesh), _heads(attn, image_value, mesh), keys=pack.images)
    return _left(attn.to_out, attended.flatten(1), pack)


def _feed_forward(ffn: Any, rows: Tensor, pack: Pack) -> Tensor:
    inner = _entered(rows, pack)
    act, dropout, out = ffn.net
    inner = dropout(act.gelu(linear(act.proj, inner)))
    return _left((out, None), inner, pack)


def _backend(attn: Any) -> Any:
    return attn.processor._attention_backend


def _heads(attn: Any, rows: Tensor, mesh: Mesh) -> Tensor:
    return rows.unflatten(1, (attn.heads // mesh.tensor.size, -1))


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: each pair of features of [tokens, heads, width] is turned by its angle."""
    x, y = heads.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1).flatten(-2).type_as(heads)


def linear(module: Any, rows: Tensor) -> Tensor:
    """A linear layer; one that tensor parallelism has cut gives this process's part."""
    if isinstance(getattr(module, "weight", None), DTensor):
        return lora.added(module, rows, F.linear(rows, local(module.weight), local(module.bias)))
    result: Tensor = module(rows)
    return result


def _normed_pair(attn: Any, query: Tensor, key: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    query, key = _normed_all([(attn.norm_q, query), (attn.norm_k, key)], mesh)
    return query, key


def _normed_all(pairs: Sequence[tuple[Any, Tensor]], mesh: Mesh) -> list[Tensor]:
    """RMS norms over all heads. Where heads are elsewhere, sums of squares are added up; nothing is gathered."""
    if mesh.tensor.size == 1:
        return [norm(rows) for norm, rows in pairs]
    squares = [rows.float().square().sum(dim=-1) for _, rows in pairs]
    totals = exchange.total(torch.cat(squares), mesh.tensor).split([len(square) for square in squares])
    results = []
    for (norm, rows), total in zip(pairs, totals, strict=True):
        scale = torch.rsqrt(total / norm.normalized_shape[0] + norm.eps)[:, None]
        results.append((rows.float() * scale * local(norm.weight)).type_as(rows))
    return results


def _entered(rows: Tensor, pack: Pack) -> Tensor:
    """Tokens as the column-cut matrices want them."""
    mesh = pack.mesh
    if mesh.layout.sizes.sequence:
        return exchange.gathered(rows, mesh.tensor, pack.share.tensor)
    return exchange.shared(rows, mesh.tensor)


def _left(out: Any, rows: Tensor, pack: Pack) -> Tensor:
    """The row-cut matrix that ends attention or the feed-forward network, and what follows it."""
    matrix, dropout = out
    mesh = pack.mesh
    if mesh.tensor.size == 1:
        rows = matrix(rows)
    else:
        part = lora.added(matrix, rows, F.linear(rows, local(matrix.weight)))
        if mesh.layout.sizes.sequence:
            part = exchange.scattered(part, mesh.tensor, pack.share.tensor)
        else:
            part = exchange.summed(part, mesh.tensor)
        rows = part + local(matrix.bias)
    return rows if dropout is None else dropout(rows)
