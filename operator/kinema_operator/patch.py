# SPDX-License-Identifier: Apache-2.0
"""Merge patches (RFC 7396) between two states of an object."""

from __future__ import annotations

from typing import Any

Raw = dict[str, Any]


def merge_patch(before: Raw, after: Raw) -> Raw:
    """What turns `before` into `after`: null removes a key, a list is replaced whole, equal parts are left out."""
    patch: Raw = {key: None for key in before if after.get(key) is None and before[key] is not None}
    for key, value in after.items():
        old = before.get(key)
        if value is None or value == old:
            continue
        patch[key] = merge_patch(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return patch
