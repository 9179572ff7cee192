# SPDX-License-Identifier: Apache-2.0
"""Prometheus and promtool."""

from __future__ import annotations

import pytest
from kinema_dashboards import programs as found
from kinema_dashboards.programs import Programs


@pytest.fixture(scope="session")
def programs() -> Programs:
    """Those of this machine, or of Debian's package."""
    return found.ensure()
