# SPDX-License-Identifier: Apache-2.0
"""What docs/faults.md says of the control plane is what the tests of this folder have seen; it runs after them."""

from __future__ import annotations

import os

import pytest

from tests.faults import test_answers, test_kills, test_leaders, test_orphaned_pods
from tests.faults.conftest import Stand
from tests.faults.table import PAGE, shown, stable, write

pytestmark = [pytest.mark.controlplane, pytest.mark.slow]

FAULTS = (test_answers.FAULT, test_kills.FAULT, test_leaders.FROZEN, test_leaders.BOTH, test_orphaned_pods.FAULT)


def test_the_page_shows_what_was_seen(stand: Stand) -> None:
    missing = [fault for fault in FAULTS if not any(row.fault == fault for row in stand.table.rows)]
    if missing:
        pytest.skip(f"run the whole folder: nothing was seen of {'; '.join(missing)}")
    text = stand.table.text()
    if os.environ.get("UPDATE_DOCS"):
        write(text)
        return
    assert list(map(stable, text.splitlines())) == list(map(stable, shown())), (
        f"the outcomes are others now; UPDATE_DOCS=1 make test-faults writes them into {PAGE.name}"
    )
