# SPDX-License-Identifier: Apache-2.0
"""What the demo tells its user when it cannot go on."""

from __future__ import annotations


class DemoError(Exception):
    """Something the user can read and act on; printed without a traceback."""
