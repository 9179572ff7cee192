# SPDX-License-Identifier: Apache-2.0
"""`kinema run --local` as its user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(file: Path, state: Path, *options: str) -> subprocess.Popen[str]:
    """Start the command in a session of its own, as a shell does; its output is one pipe."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "kinema_cli", "run", "--local", str(file)),
            *("--accelerator", "cpu", "--state", str(state), *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
