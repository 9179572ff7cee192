# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities."""

from __future__ import annotations

import pytest

from kinema_api.quantity import bytes_of, times


@pytest.mark.parametrize(
    ("text", "size"), [("80Gi", 80 << 30), ("512Mi", 512 << 20), ("1.5G", 1_500_000_000), ("7", 7)]
)
def test_quantities_are_bytes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    ("text", "factor", "product"), [("1.5Gi", 4, "6Gi"), ("250m", 8, "2000m"), ("0.1", 3, "0.3"), ("100", 10, "1000")]
)
def test_multiples_keep_the_unit(text: str, factor: int, product: str) -> None:
    assert times(text, factor) == product


@pytest.mark.parametrize("text", ["80GB", "80 Gi", "many", "", "Gi", "-1", "1e3"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    for use in (bytes_of, lambda quantity: times(quantity, 2)):
        with pytest.raises(ValueError, match="write for instance 500m, 4 or 80Gi"):
            use(text)
