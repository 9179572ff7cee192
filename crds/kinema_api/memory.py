# SPDX-License-Identifier: Apache-2.0
"""What a training process holds in its device's memory, from the catalogue's dimensions alone.

Pure arithmetic, so that the operator can refuse what cannot fit before any accelerator is booked.
`kinema-trainer plan` rehearses the engine's own step in place of it; a test holds the two together. Counted are the
tensors of a step: not the device's context, the buffers of its communication library, nor what its allocator cannot
join.

What autograd keeps of a block was derived from the engine's own forward pass (kinema_trainer/models/wan_forward.py),
tensor by tensor; S are the tokens inside the matrices, T those between them (fewer with `sequence`), n the size of the
tensor axis, e the bytes of the computation's number format:

    norm1 and norm3: input and result in float32; norm2: input     5 x 4 T hidden
    gates: what they multiply                                      (e + 4) T hidden
    inputs of q, k, v; of the cross-attention; of the ffn          3 e S hidden
    self-attention: q and k before their norm, q, k, v, result     6 e S hidden / n
    cross-attention: q before and after its norm, result           3 e S hidden / n
    log-sum-exp of both                                            8 S heads / n
    feed-forward: before and after GELU                            2 e S ffn / n
    caption (and image) tokens K: k before and after its norm, v   3 e K hidden / n
    an image beside the caption: its attention, and the sum        (2 e hidden + 4 heads) S / n

The RMS norms of queries and keys keep more where they have no fused kernel: on a CPU, and over several tensor
processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from kinema_api.catalogue import Entry, Transformer
from kinema_api.layout import Sizes
from kinema_api.pool import Accelerator
from kinema_api.recompute import Recompute, RecomputeMode
from kinema_api.settings import Precision, TrainSettings

GIB = 1 << 30
FORWARD_ROWS, BACKWARD_ROWS = 3, 5
"""Float32 tensors of a token's width that are in flight where the forward pass ends, and while a block's gradients are
made that was computed again."""
TABLE_ROWS = 6
"""Rows of the time table in a block: shift, scale and gate of attention and feed-forward."""


@dataclass(frozen=True)
class Work:
    """What one forward pass of one model copy takes in.

    Args:
        tokens: video tokens of all clips.
        clips: how many there are.
        image: image tokens of a clip.
    """

    tokens: int
    clips: int
    image: int = 0


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process by what holds them."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    gathered: int
    """Blocks that FSDP has gathered, and gradients on their way to their parts."""
    activations: int
    """What autograd keeps for the backward pass."""
    working: int
    """What is in flight while a block's gradients are made; a block that is computed again counts here."""

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(self.parts().values())

    def parts(self) -> Mapping[str, int]:
        """Bytes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        largest = sorted(self.parts().items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {gib(size)}" for name, size in largest if size * 50 > self.total)


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"


def estimate(
    model: Entry, train: TrainSettings, *, sizes: Sizes, work: Work, accelerator: Accelerator = Accelerator.NVIDIA
) -> Estimate:
    """What a process holds at the peak of a step.

    Args:
        model: the catalogue entry.
        train: settings of the stage.
        sizes: the size of every axis.
        work: one forward pass.
        accelerator: what it runs on.
    """
    dims, cut = model.transformer, _cut(sizes)
    block, ends = block_parameters(model) / sizes.tensor, end_parameters(model)
    own = (dims.layers * block + ends) / cut
    trained = _lora(model, train, sizes=sizes) / cut if train.lora.enabled else own
    number = 2 if train.precision is Precision.BF16 else 4
    # A whole copy stays gathered from its forward pass to its backward pass, a part is gathered block by block.
    if sizes.world == sizes.tensor and number == 4:
        gathered = 0.0
    else:
        gathered = number * ((2 if cut > 1 else dims.layers) * block + ends)
    saved = _Block(model, train, sizes=sizes, work=work, fused=accelerator is not Accelerator.CPU)
    kept, again = saved.kept(train.recompute)
    held = {
        "parameters": round(4 * own),
        "optimizer": round(8 * trained),
        "average": round(4 * trained) if train.ema.enabled else 0,
    }
    # The first gradients are made when most activations are still there; the last when none is.
    first = Estimate(
        **held,
        gradients=round(4 * trained) if train.accumulate > 1 else 0,
        gathered=round(gathered),
        activations=round(kept + (0 if again else saved.ends())),
        working=round(again + saved.working(again=again > 0)),
    )
    last = Estimate(
        **held, gradients=round(4 * trained), gathered=round(gathered), activations=0, working=round(saved.whole())
    )
    return max(first, last, key=lambda found: found.total)


def _cut(sizes: Sizes) -> int:
    return sizes.shard * sizes.ring * sizes.ulysses if sizes.shard > 1 else 1


def block_parameters(model: Entry) -> int:
    """Numbers in one block."""
    dims = model.transformer
    square = dims.hidden**2 + dims.hidden
    attention = 4 * square + 2 * dims.hidden
    image = 2 * square + dims.hidden if model.image is not None else 0
    feed_forward = 2 * dims.hidden * dims.ffn + dims.ffn + dims.hidden
    return 2 * attention + image + feed_forward + (TABLE_ROWS + 2) * dims.hidden


def end_parameters(model: Entry) -> int:
    """Numbers outside the blocks: embeddings and the head."""
    return max(0, model.transformer.parameters - model.transformer.layers * block_parameters(model))


def _lora(model: Entry, train: TrainSettings, *, sizes: Sizes) -> float:
    """Numbers that low-rank additions have; those to the projections of every attention where no targets are named."""
    dims, lora = model.transformer, train.lora
    wide = sum("ffn" in target for target in lora.targets)
    square = len(lora.targets) - wide if lora.targets else 8
    return dims.layers * lora.rank * (square * 2 * dims.hidden + wide * (dims.hidden + dims.ffn)) / sizes.tensor


class _Block:
    """What of a block's forward pass is kept, in bytes."""

    def __init__(self, model: Entry, train: TrainSettings, *, sizes: Sizes, work: Work, fused: bool) -> None:
        self.dims: Transformer = model.transformer
        self.n = sizes.tensor
        self.number = 2 if train.precision is Precision.BF16 else 4
        self.inside = math.ceil(work.tokens / (sizes.ring * sizes.ulysses))
        self.between = math.ceil(self.inside / self.n) if sizes.sequence else self.inside
        self.text = work.clips * model.text_length
        self.image = work.clips * work.image
        self.fused = fused
        self.features = model.transformer.in_channels * math.prod(model.transformer.patch)

    def kept(self, recompute: Recompute) -> tuple[float, float]:
        """Bytes that all blocks keep, and those of a block that is computed again."""
        layers, whole, entry = self.dims.layers, self.whole(), self.entry()
        if recompute.mode is RecomputeMode.NONE:
            kept, again = layers * whole, 0.0
        elif recompute.mode is RecomputeMode.INTERVAL:
            repeated = math.ceil(layers / recompute.every)
            kept, again = repeated * entry + (layers - repeated) * whole, whole
        else:
            selected = self.selected(recompute) if recompute.mode is RecomputeMode.SELECTIVE else 0.0
            kept, again = layers * (entry + selected), whole
        # On the host lies what is kept; a block at a time is on the device.
        return (0.0, whole) if recompute.offload else (kept, again)

    def entry(self) -> float:
        """The input of a block."""
        return self.number * self.between * self.dims.hidden

    def whole(self) -> float:
        """All that autograd keeps of a block."""
        width, part = self.dims.hidden, self.dims.hidden / self.n
        norms = 5 * 4 * self.between * width
        gates = (self.number + 4) * self.between * width
        inputs = 3 * self.number * self.inside * width
        attention = 9 * self.number * self.inside * part + 8 * self.inside * self.dims.heads / self.n
        forward = 2 * self.number * self.inside * self.dims.ffn / self.n
        given = 3 * self.number * (self.text + self.image) * part
        if self.image:
            attention += (2 * self.number * self.dims.hidden + 4 * self.dims.heads) * self.inside / self.n
        return norms + gates + inputs + attention + forward + given + self._unfused(part)

    def _unfused(self, part: float) -> float:
        """What the norms of queries and keys keep besides, where they have no kernel of their own."""
        if self.fused and self.n == 1:
            return 0.0
        rows = 3 * self.inside + self.text + self.image
        # The normalised input, and in bfloat16 copies of the input in float32: one in place of it, or two beside it.
        each = 4 if self.number == 4 else 10 if self.n > 1 else 6
        return each * rows * part

    def selected(self, recompute: Recompute) -> float:
        """What of a block is kept beside its input."""
        part = self.dims.hidden / self.n
        attention = 2 * (self.number * part + 4 * self.dims.heads / self.n) * self.inside
        matmul = self.number * (
            self.inside * (4 * part + 2 * self.dims.hidden + (self.dims.ffn + self.dims.hidden) / self.n)
            + 2 * self.text * part
        )
        return sum({"attention": attention, "matmul": matmul}.get(name, 0.0) for name in recompute.save)

    def working(self, *, again: bool) -> float:
        """What is in flight beside what is kept."""
        rows = BACKWARD_ROWS if again else FORWARD_ROWS
        return 4 * rows * self.between * self.dims.hidden

    def ends(self) -> float:
        """What embedding, head and loss keep."""
        width = self.dims.hidden
        latents = 4 * 4 * self.inside * self.features
        return latents + (self.number + 4) * self.between * width + self.number * self.text * width
