# SPDX-License-Identifier: Apache-2.0
"""The numbers of a training's steps, read from metrics.jsonl as it grows, and few enough points of them to draw."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from typing import Any

from kinema_api.reading import SERIES, History, Series
from kinema_stage.workspace import Workspace

METRICS = "metrics.jsonl"
_CHUNK = 4 << 20
_SEAM = 64
"""Bytes before the end of what was read; other ones there now mean that the file was cut and grew again."""


class Steps:
    """What was read of a file so far; only what came since is read again."""

    def __init__(self, workspace: Workspace, path: str) -> None:
        self._workspace = workspace
        self._path = path
        self._clear()

    def _clear(self) -> None:
        self._offset = 0
        self._seam = b""
        self._rest = b""
        self._steps: dict[str, array[int]] = {name: array("q") for name in SERIES}
        self._values: dict[str, array[float]] = {name: array("d") for name in SERIES}
        self._last: int | None = None

    def refresh(self) -> None:
        """Read what was added. A file that was cut, by an attempt that goes on from a checkpoint, is read anew.

        Raises:
            OSError: the workspace cannot be read.
        """
        start = self._offset - len(self._seam)
        try:
            seam = self._workspace.read_range(self._path, start=start, end=self._offset) if self._seam else b""
            if seam != self._seam:
                self._clear()
            while data := self._workspace.read_range(self._path, start=self._offset, end=self._offset + _CHUNK):
                self._take(data)
        except FileNotFoundError:
            self._clear()

    def history(self, names: Sequence[str], *, points: int) -> History:
        """The numbers of some names, each cut to a number of points."""
        return History(
            step=self._last,
            series=[
                _series(name, self._steps[name], self._values[name], points=points)
                for name in names
                if self._steps[name]
            ],
        )

    def _take(self, data: bytes) -> None:
        self._offset += len(data)
        self._seam = (self._seam + data)[-_SEAM:]
        # The last line may still be written.
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        try:
            numbers: dict[str, Any] = json.loads(line)
            step = int(numbers["step"])
        except (ValueError, KeyError, TypeError):
            return
        self._last = step
        for name in SERIES:
            value = numbers.get(name)
            if isinstance(value, int | float):
                self._steps[name].append(step)
                self._values[name].append(float(value))


def _series(name: str, steps: Sequence[int], values: Sequence[float], *, points: int) -> Series:
    kept = chosen(values, points=points)
    shown = (values[place] for place in kept)
    return Series(
        name=name,
        steps=[steps[place] for place in kept],
        values=[value if math.isfinite(value) else None for value in shown],
    )


def chosen(values: Sequence[float], *, points: int) -> list[int]:
    """Places of the points to draw: the first, the last, and of each stretch between the one that stands out most.

    Largest-Triangle-Three-Buckets (Sveinn Steinarsson, 2013), over evenly spaced places. A value that is not finite
    stands out more than any other.
    """
    count = len(values)
    if count <= points or points < 3:
        return [*range(count)] if count <= points else [0, count - 1][:points]
    width = (count - 2) / (points - 2)
    kept = [0]
    for bucket in range(points - 2):
        first, end = 1 + int(bucket * width), 1 + int((bucket + 1) * width)
        following = range(end, min(1 + int((bucket + 2) * width), count))
        middle = (following[0] + following[-1]) / 2
        mean = _finite(math.fsum(_finite(values[place]) for place in following) / len(following))
        last, height = kept[-1], _finite(values[kept[-1]])
        kept.append(
            max(
                range(first, end),
                key=lambda place: _area(last, height, place, values[place], middle, mean),
            )
        )
    return [*kept, count - 1]


def _area(x0: float, y0: float, x1: float, y1: float, x2: float, y2: float) -> float:
    if not math.isfinite(y1):
        return math.inf
    return abs((x0 - x2) * (y1 - y0) - (x0 - x1) * (y2 - y0))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
