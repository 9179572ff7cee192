# SPDX-License-Identifier: Apache-2.0
"""What each clip costs: its shape is known before it is read, and its time follows from its tokens."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kinema_api.catalogue import Entry
from kinema_api.operations import forward
from kinema_api.packing import Cost

Shape = tuple[int, int, int, int]
"""Latents: channels, frames, height, width."""

_TERMS = 3
_FEWEST = 2 * _TERMS
"""Measured steps below which nothing is said about the cost."""


def tokens(shape: Shape, *, patch: Sequence[int]) -> int:
    """Video tokens of a clip."""
    return math.prod(size // part for size, part in zip(shape[1:], patch, strict=True))


def predicted(model: Entry) -> Cost:
    """Operations of a forward pass, in 1e12: by tokens squared, tokens, and clips; only proportions matter here."""
    none, one, two = (forward(model, tokens=tokens).total for tokens in range(3))
    quadratic = (two - 2 * one + none) // 2
    return Cost(quadratic=quadratic * 1e-12, linear=(one - none - quadratic) * 1e-12, clip=none * 1e-12)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The clips that a run trains on, with what each costs. The same for every process.

    Args of note:
        keys: of the clips.
        shapes: of their latents.
        places: index of each in the features.
    """

    keys: tuple[str, ...]
    shapes: tuple[Shape, ...]
    places: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    costs: npt.NDArray[np.float64]
    cost: Cost

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        shapes: Sequence[Shape],
        *,
        patch: Sequence[int],
        cost: Cost,
        selected: Iterable[int] | None = None,
    ) -> Table:
        """The table of some clips of the features, all when `selected` is left out."""
        places = list(range(len(keys)) if selected is None else selected)
        counts = [tokens(shapes[place], patch=patch) for place in places]
        return cls(
            keys=tuple(keys[place] for place in places),
            shapes=tuple(shapes[place] for place in places),
            places=np.array(places, dtype=np.int64),
            tokens=np.array(counts, dtype=np.int64),
            costs=np.array([cost.of(count) for count in counts], dtype=np.float64),
            cost=cost,
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def digest(self) -> str:
        """Of all that decides what is selected and how it is packed."""
        found = hashlib.sha256(json.dumps(self.cost.wire(), sort_keys=True).encode())
        for key, shape in zip(self.keys, self.shapes, strict=True):
            found.update(f"\n{key} {shape}".encode())
        return found.hexdigest()[:20]


@dataclass(slots=True)
class Measured:
    """Fits the cost of a clip to measured times: of what a process computed, by the clips' tokens.

    Least squares, where no term may be negative. The result changes nothing in the run that measures it.
    """

    count: int = 0
    _products: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((_TERMS, _TERMS)))
    _right: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(_TERMS))

    def add(self, clips: Iterable[int], *, seconds: float) -> None:
        """Take in the time that forward and backward passes over clips of so many tokens took."""
        counts = np.array(list(clips), dtype=np.float64)
        row = np.array([np.square(counts).sum(), counts.sum(), float(len(counts))])
        # Relative errors count: a short step says as much of the proportions as a long one.
        row, target = row / seconds, 1.0
        self._products += np.outer(row, row)
        self._right += row * target
        self.count += 1

    def fit(self) -> Cost | None:
        """The cost that fits best; None while too little was measured."""
        if self.count < _FEWEST:
            return None
        scale = np.sqrt(np.diag(self._products))
        matrix, right = self._products / np.outer(scale, scale), self._right / scale
        best: tuple[float, npt.NDArray[np.float64]] | None = None
        for mask in range(1, 1 << _TERMS):
            active = [term for term in range(_TERMS) if mask >> term & 1]
            values = np.zeros(_TERMS)
            values[active] = np.linalg.lstsq(matrix[np.ix_(active, active)], right[active], rcond=1e-9)[0]
            error = float(values @ matrix @ values - 2 * right @ values)
            if (values >= 0).all() and (best is None or error < best[0] - 1e-9):
                best = (error, values)
        if best is None:
            return None
        quadratic, linear, clip = (float(value) for value in best[1] / scale)
        return Cost(quadratic=quadratic, linear=linear, clip=clip)
