# SPDX-License-Identifier: Apache-2.0
"""What a job will take, for people. Pure."""

from __future__ import annotations

from rich.text import Text

from kinema_api.forecast import Forecast
from kinema_api.memory import gib
from kinema_cli.view.table import Column, hanging, pairs, table
from kinema_cli.view.text import duration, money, plural

_STAGES = (Column("STAGE"), Column("POOL"), Column("PODS", right=True), Column("DEVICES A POD", right=True))
_LEAST = 50
"""What holds less than a fiftieth of the memory is not named."""


def plan(found: Forecast, *, name: str, width: int | None = None) -> list[Text | str]:
    """What a job will take."""
    rows = [(stage.stage, stage.pool or "any node", stage.pods, stage.devices or "-") for stage in found.stages]
    lines: list[Text | str] = [Text(f"{name}: {found.model} on pool {found.pool}", style="bold"), ""]
    lines += [*table(_STAGES, rows, width=width), ""]
    lines += pairs(
        [
            ("devices", f"{found.devices} x {found.accelerator}, layout {found.layout}"),
            ("", ""),
            ("memory", _memory(found)),
            ("a step", _step(found)),
            ("time", _time(found)),
            ("books", f"{found.accelerator_hours:,.0f} accelerator-hours" if found.accelerator_hours else ""),
            ("cost", _cost(found)),
        ],
        width=width,
    )
    why = [found.layout_reason] if found.layout_reason else []
    notes = [line for note in (*why, *found.notes) for line in hanging(Text("- "), note, width=width)]
    return [*lines, "", *notes]


def _memory(found: Forecast) -> str:
    largest = sorted(found.memory.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gib(size)}" for name, size in largest if size * _LEAST > found.memory_total)
    total = f"{gib(found.memory_total)} of a device"
    if found.device_memory:
        total = f"{gib(found.memory_total)} of {gib(found.device_memory)} a device"
    return f"{total} ({parts})"


def _step(found: Forecast) -> str:
    took = f", {found.step_seconds:.3g} s" if found.step_seconds is not None else ""
    return f"{plural(found.samples_per_step, 'clip')} of {found.clip}, {_rounded(found.tflop_per_step)} TFLOP{took}"


def _rounded(number: float) -> str:
    """Whole where it is large, else three digits: a toy's step is no 0 TFLOP."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _time(found: Forecast) -> str:
    if found.seconds is None:
        return f"{found.pace} (--step-seconds, --peak-tflops)"
    return f"{duration(found.seconds)} for {found.steps:,} steps ({found.pace})"


def _cost(found: Forecast) -> str:
    if found.cost is not None and found.price_per_hour is not None:
        return f"{money(found.cost, found.currency)}, {money(found.price_per_hour, found.currency)} an hour"
    if found.price_per_hour is not None:
        return f"{money(found.price_per_hour, found.currency)} an hour"
    return ""
