# SPDX-License-Identifier: Apache-2.0
"""How many CPU threads a process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def cpu_threads(processes: int) -> int:
    """Threads for each of `processes` on this machine, as the container's CPU limit allows."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        quota, period = "max", "1"
    if quota != "max":
        cores = min(cores, int(quota) / int(period))
    return max(1, math.floor(cores / processes))
