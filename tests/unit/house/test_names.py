# SPDX-License-Identifier: Apache-2.0
"""All tests can be collected by one command."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[2]


def test_no_two_test_files_are_one_module() -> None:
    """In folders that are no packages pytest knows a file by its name alone."""
    names = Counter(path.name for path in TESTS.rglob("test_*.py") if not (path.parent / "__init__.py").exists())
    assert [name for name, count in names.items() if count > 1] == []
