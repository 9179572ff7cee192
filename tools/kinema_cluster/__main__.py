# SPDX-License-Identifier: Apache-2.0
"""`python3 -m kinema_cluster` is tools/cluster."""

from __future__ import annotations

import sys

from kinema_cluster.cli import main

sys.exit(main(sys.argv[1:]))
