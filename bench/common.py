# SPDX-License-Identifier: Apache-2.0
"""One benchmark, one ratio: how it is reported."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench" / "results"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared.

    Args of note:
        value: the figure that enters the ratio.
        raw: what the figure was made of, as it was measured: numbers, lists and mappings of them.
    """

    what: str
    value: float
    unit: str
    raw: Any


@dataclass(frozen=True, slots=True)
class Goal:
    """The bound of a ratio: exactly one is given."""

    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a goal is either at_most or at_least")

    def holds(self, ratio: float) -> bool:
        """Whether a ratio is within the bound."""
        if self.at_most is not None:
            return ratio <= self.at_most
        assert self.at_least is not None
        return ratio >= self.at_least

    def __str__(self) -> str:
        return f"<= {self.at_most}" if self.at_most is not None else f">= {self.at_least}"


def report(
    name: str,
    *,
    ours: Side,
    reference: Side,
    goal: Goal,
    settings: Mapping[str, Any] | None = None,
    results: Path = RESULTS,
) -> bool:
    """Print one JSON line without the raw figures, write all to `results/NAME.json`, and say whether the goal holds.

    Args:
        name: of the benchmark.
        ours: Kinema's side; the ratio is its value over the reference's.
        reference: the other side, measured in the same run.
        goal: the bound of the ratio.
        settings: sizes that the figures depend on.
        results: folder to write to.
    """
    if not (reference.value > 0 and ours.value >= 0):
        raise ValueError(f"{name}: no ratio of {ours.value} to {reference.value}")
    ratio = ours.value / reference.value
    holds = goal.holds(ratio)
    head = {"name": name, "ratio": round(ratio, 4), "goal": str(goal), "holds": holds}
    brief = {"ours": f"{ours.value:.4g} {ours.unit}", "reference": f"{reference.value:.4g} {reference.unit}"}
    print(json.dumps(head | brief), flush=True)
    whole = head | {
        "ours": _side(ours),
        "reference": _side(reference),
        "settings": dict(settings or {}),
        "commit": commit(),
        "machine": machine(),
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return holds


def _side(side: Side) -> dict[str, Any]:
    return {"what": side.what, "value": side.value, "unit": side.unit, "raw": side.raw}


def commit(repository: Path = REPOSITORY) -> str:
    """The commit that was measured; `+` behind it where the checkout differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that names the machine."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "memoryGiB": round(int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) / 2**20, 1),
        "python": platform.python_version(),
        "torch": _version("torch"),
    }


def _field(path: Path, name: str) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    raise ValueError(f"{path} has no {name}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
