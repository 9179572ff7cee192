# SPDX-License-Identifier: Apache-2.0
"""The loss curve of metrics.jsonl as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from kinema_demo.errors import DemoError


def losses(lines: Iterable[str]) -> dict[int, float]:
    """Loss by step; the last line of a step counts, since a resumed run does some steps again."""
    rows = (json.loads(line) for line in lines if line.strip())
    found = {int(row["step"]): float(row["loss"]) for row in rows if "step" in row and "loss" in row}
    return dict(sorted(found.items()))


def smooth(values: Sequence[float], *, window: int) -> list[float]:
    """The mean of each value and up to `window` - 1 values before it."""
    means = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - window) : end]
        means.append(sum(part) / len(part))
    return means


def draw(metrics: Path, picture: Path, *, title: str) -> None:
    """Write the PNG.

    Raises:
        DemoError: the file holds no loss.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = losses(metrics.read_text(encoding="utf-8").splitlines())
    if not points:
        raise DemoError(f"{metrics} holds no step with a loss: did training write it?")
    steps, values = list(points), list(points.values())
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes.plot(steps, values, color="#9db8d9", linewidth=0.8, label="loss of a step")
    window = max(1, len(values) // 20)
    axes.plot(steps, smooth(values, window=window), color="#1f4e8c", linewidth=1.8, label=f"mean of {window} steps")
    axes.set(title=title, xlabel="step", ylabel="loss", xlim=(steps[0], max(steps[-1], steps[0] + 1)))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(picture)
    pyplot.close(figure)
