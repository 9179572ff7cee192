# SPDX-License-Identifier: Apache-2.0
"""Multiples of Kubernetes quantities, without floating point."""

from __future__ import annotations

import re
from decimal import Decimal

_PARTS = re.compile(r"^(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<suffix>[a-zA-Z]*)$")


def times(quantity: str, factor: int) -> str:
    """A quantity taken several times, in the same unit: 1.5Gi four times is 6Gi.

    Raises:
        ValueError: the text is no quantity.
    """
    match = _PARTS.match(quantity)
    if match is None:
        raise ValueError(f"{quantity} is not a quantity; write for instance 500m, 4 or 16Gi")
    number = (Decimal(match["number"]) * factor).normalize()
    return f"{number:f}{match['suffix']}"
