# SPDX-License-Identifier: Apache-2.0
"""The order of the tests: mutation testing stops at the first that fails, so what sees much in little time is first."""

from __future__ import annotations

import pytest

ORDER = ("test_parts", "test_usage", "test_stall", "test_plan", "test_refusals", "test_transcripts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else len(ORDER))
