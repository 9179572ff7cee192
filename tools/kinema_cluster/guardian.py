# SPDX-License-Identifier: Apache-2.0
"""Waits for the end of standard input, then clears the control plane it was given."""

from __future__ import annotations

import sys
from pathlib import Path

from kinema_cluster.control_plane import clear
from kinema_cluster.paths import Layout
from kinema_cluster.record import locked


def main() -> None:
    # The pipe's other end is held by the user of the control plane alone: it closes when that process ends,
    # also by SIGKILL. A PDEATHSIG would fire when merely the thread that started us ends.
    while sys.stdin.buffer.read(4096):
        pass
    layout = Layout(Path(sys.argv[1]))
    with locked(layout.root):
        clear(layout)


if __name__ == "__main__":
    main()
