# SPDX-License-Identifier: Apache-2.0
"""How a model and its data are spread over the training processes: what is asked, what it comes to, what is refused.

Pure, so that the operator refuses a layout before any accelerator is booked, in the words of the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from pydantic import Field

from kinema_api.base import Model

AXES = ("pipeline", "replicate", "shard", "ring", "ulysses", "tensor")
"""Outermost first: neighbouring ranks differ in `tensor`, whose traffic is the heaviest. `pipeline` is reserved."""
MORE_COPIES = 0.5
"""What doubling `replicate` counts where it was left at 1, beside any other change: it touches the model least."""


class Layout(Model):
    """How many processes share what. The product of all axes is the number of processes."""

    replicate: int = Field(default=1, ge=1, le=6400)
    """Groups of processes with a whole copy of the model between them, each with its own clips."""
    shard: int | None = Field(default=None, ge=1, le=6400)
    """Processes over which weights, gradients and optimizer are cut, each with its own clips; 1 cuts nothing; what the
    other axes leave when left out."""
    tensor: int = Field(default=1, ge=1, le=64)
    """Processes over which each matrix, and the heads of attention, are cut. Keep it within a node."""
    sequence: bool = False
    """Cut the tokens between the matrices over the `tensor` processes too: less memory, the same traffic."""
    ulysses: int = Field(default=1, ge=1, le=64)
    """Processes that share the tokens of a clip, and trade tokens for heads around attention."""
    ring: int = Field(default=1, ge=1, le=256)
    """Processes that share the tokens of a clip, and pass keys and values round during attention."""


@dataclass(frozen=True)
class Widths:
    """What of a transformer has to divide."""

    heads: int
    hidden: int
    ffn: int


@dataclass(frozen=True)
class Sizes:
    """The size of every axis."""

    replicate: int = 1
    shard: int = 1
    ring: int = 1
    ulysses: int = 1
    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1

    @property
    def world(self) -> int:
        """Processes."""
        return math.prod(self.size(axis) for axis in AXES)

    @property
    def data(self) -> int:
        """Sets of processes that train on clips of their own."""
        return self.replicate * self.shard

    def size(self, axis: str) -> int:
        """The size of the axis of `AXES`."""
        return int(getattr(self, axis))

    def __str__(self) -> str:
        named = [f"{axis} {self.size(axis)}" for axis in AXES if axis == "shard" or self.size(axis) > 1]
        return ", ".join([*named, *(["sequence"] if self.sequence else [])])


class LayoutError(ValueError):
    """The layout cannot work; the message says why, and which is the nearest that does."""


def resolve(layout: Layout, *, world: int, model: Widths) -> Sizes:
    """The size of every axis.

    Args:
        layout: what is asked.
        world: the number of processes.
        model: what has to divide.

    Raises:
        LayoutError: it cannot work.
    """
    others = layout.replicate * layout.ring * layout.ulysses * layout.tensor
    shard = layout.shard or max(1, world // others)
    sizes = Sizes(
        replicate=layout.replicate,
        shard=shard,
        ring=layout.ring,
        ulysses=layout.ulysses,
        tensor=layout.tensor,
        sequence=layout.sequence,
    )
    reason = _mismatch(layout, sizes, world=world) or fault(sizes, model)
    if reason is not None:
        raise LayoutError(f"{reason}; the nearest layout that works: {nearest(layout, world=world, model=model)}")
    return sizes


def _mismatch(layout: Layout, sizes: Sizes, *, world: int) -> str | None:
    """Why the axes do not fill the processes."""
    if sizes.world != world:
        axes = " x ".join(f"{axis} {sizes.size(axis)}" for axis in AXES if sizes.size(axis) > 1 or axis == "shard")
        return f"layout: {axes} makes {sizes.world} processes, and there are {world}"
    if layout.shard is None and sizes.shard == 1 and layout.replicate > 1:
        return (
            f"layout: replicate {layout.replicate} leaves a shard axis of 1, so nothing would be cut (write shard: 1 if"
            " every process is to have a whole copy)"
        )
    return None


def fault(sizes: Sizes, model: Widths) -> str | None:
    """Why a model cannot be cut like this; None if it can."""
    if sizes.pipeline != 1:
        return f"layout: pipeline {sizes.pipeline} is reserved for another backend"
    if sizes.sequence and sizes.tensor == 1:
        return "layout: sequence cuts tokens over the tensor processes, and tensor is 1"
    for name, width in (("heads", model.heads), ("hidden", model.hidden), ("ffn", model.ffn)):
        if width % sizes.tensor:
            what = f"{width} attention heads do" if name == "heads" else f"a {name} width of {width} does"
            return f"layout: {what} not divide by tensor {sizes.tensor}"
    heads = model.heads // sizes.tensor
    if sizes.ulysses > heads:
        each = (
            f"the {heads} heads that tensor {sizes.tensor} leaves" if sizes.tensor > 1 else f"{heads} attention heads"
        )
        return f"layout: ulysses {sizes.ulysses} is more than {each}, and every process needs one"
    if heads % sizes.ulysses:
        return f"layout: {model.heads} attention heads do not divide by tensor {sizes.tensor} x ulysses {sizes.ulysses}"
    return None


def nearest(layout: Layout, *, world: int, model: Widths) -> Sizes:
    """The layout that works and is closest to what was asked: every doubling or halving of an axis counts 1."""
    found = next(by_distance(layout, world=world, model=model), None)
    assert found is not None, "one process for each part of the data always works"
    return found


def by_distance(layout: Layout, *, world: int, model: Widths) -> Iterator[Sizes]:
    """Every layout that works, the closest to what was asked first."""
    asked = {"replicate": layout.replicate, "ring": layout.ring, "ulysses": layout.ulysses, "tensor": layout.tensor}
    if layout.shard is not None:
        asked["shard"] = layout.shard

    def distance(sizes: Sizes) -> tuple[float, ...]:
        # Of equals, the one that cuts more over `shard`, which fits any model.
        far = sum(
            abs(math.log2(sizes.size(axis) / size)) * (MORE_COPIES if (axis, size) == ("replicate", 1) else 1.0)
            for axis, size in asked.items()
        )
        return (round(far, 9), -sizes.shard, sizes.replicate, sizes.ring, sizes.ulysses)

    works = (
        sizes
        for sizes in _all(world, sequence=layout.sequence)
        if fault(sizes, model) is None and (layout.shard is not None or sizes.shard > 1 or sizes.replicate == 1)
    )
    yield from sorted(works, key=distance)


def _all(world: int, *, sequence: bool) -> Iterator[Sizes]:
    """Every layout of so many processes."""
    for tensor in _divisors(world):
        for ulysses in _divisors(world // tensor):
            for ring in _divisors(world // tensor // ulysses):
                for shard in _divisors(world // tensor // ulysses // ring):
                    yield Sizes(
                        replicate=world // tensor // ulysses // ring // shard,
                        shard=shard,
                        ring=ring,
                        ulysses=ulysses,
                        tensor=tensor,
                        sequence=sequence and tensor > 1,
                    )


@cache
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(candidate for candidate in range(1, number + 1) if number % candidate == 0)
