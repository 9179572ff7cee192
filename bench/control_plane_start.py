# SPDX-License-Identifier: Apache-2.0
"""How long the control plane of the tests takes to start, against the 20 seconds that a test may wait for it."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

from bench.common import Goal, Side, report
from kinema_cluster import build, control_plane

LIMIT_SECONDS = 20.0
GOAL = Goal(at_most=1.0)


def seconds(name: str) -> float:
    """Start a control plane with training-operator, and end it; seconds until it answered."""
    started = time.monotonic()
    with control_plane.control_plane(name):
        return time.monotonic() - started


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts; the median counts")
    options = parser.parse_args()
    build.ensure(*control_plane.TOOLS)
    found = [seconds(f"bench-{os.getpid()}-{number}") for number in range(options.rounds)]
    holds = report(
        "control_plane_start",
        ours=Side(what="tools/cluster up --control-plane", value=statistics.median(found), unit="s", raw=found),
        reference=Side(what="what a test may wait", value=LIMIT_SECONDS, unit="s", raw=LIMIT_SECONDS),
        goal=GOAL,
        settings={"rounds": options.rounds},
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
