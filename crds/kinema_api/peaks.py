# SPDX-License-Identifier: Apache-2.0
"""What devices can do at most: the denominator of MFU, and of a plan's time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PEAKS: Mapping[tuple[str, ...], float] = {
    ("H100", "PCIE"): 756e12,
    ("H800", "PCIE"): 756e12,
    ("H100", "NVL"): 835.5e12,
    ("H200", "NVL"): 835.5e12,
    ("H100",): 989.4e12,
    ("H200",): 989.4e12,
    ("H800",): 989.4e12,
    ("A100",): 312e12,
    ("A800",): 312e12,
    ("B200",): 2250e12,
    ("GB200",): 2500e12,
    ("GB300",): 2500e12,
}
"""Dense bfloat16 operations a second, from the vendors' data sheets, by words of a device's name; the first counts.
SXM parts are not named so."""
_PART = "MIG"
"""The word in the name of a part of a device, whose peak nobody tells."""


class Peak(NamedTuple):
    """What a device can do at most."""

    operations: float
    """A second, dense, in bfloat16."""
    device: str
    """The words by which it was found."""


def peak_of(*texts: str) -> Peak | None:
    """The peak of the device that some texts name; None when it is unknown."""
    words = set(" ".join(texts).upper().replace("-", " ").replace("_", " ").split())
    if _PART in words:
        return None
    return next((Peak(peak, " ".join(name)) for name, peak in PEAKS.items() if words.issuperset(name)), None)
