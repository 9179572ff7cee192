# SPDX-License-Identifier: Apache-2.0
"""What the local cluster tells its user when it cannot go on."""

from __future__ import annotations


class ClusterError(Exception):
    """Something the user can read and act on; the command line prints it without a traceback."""
