# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities such as 500m and 1.5Gi, without floating point."""

from __future__ import annotations

import re
from decimal import Decimal

_PARTS = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<suffix>[a-zA-Z]*)")
_UNITS = {"": Decimal(1), "m": Decimal("0.001")}
_UNITS |= {unit: Decimal(1000**power) for power, unit in enumerate(["k", "M", "G", "T", "P"], start=1)}
_UNITS |= {unit: Decimal(1024**power) for power, unit in enumerate(["Ki", "Mi", "Gi", "Ti", "Pi"], start=1)}


def times(quantity: str, factor: int) -> str:
    """A quantity taken several times, in the same unit: 1.5Gi four times is 6Gi.

    Raises:
        ValueError: the text is no quantity.
    """
    number, suffix = _parts(quantity)
    return f"{(number * factor).normalize():f}{suffix}"


def bytes_of(quantity: str) -> int:
    """The bytes of an amount of memory.

    Raises:
        ValueError: the text is none.
    """
    number, suffix = _parts(quantity)
    return int(number * _UNITS[suffix])


def _parts(quantity: str) -> tuple[Decimal, str]:
    match = _PARTS.fullmatch(quantity)
    if match is None or match["suffix"] not in _UNITS:
        raise ValueError(f"{quantity!r} is not a quantity; write for instance 500m, 4 or 80Gi")
    return Decimal(match["number"]), match["suffix"]
