# SPDX-License-Identifier: Apache-2.0
"""Local space of a stage, where what lies in object storage is staged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kinema_api.names import ENV_SCRATCH, SCRATCH_DIR


def root(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of this machine's scratch: the one that the environment names, the pod's, or the system's own."""
    if named := environment.get(ENV_SCRATCH):
        folder = Path(named)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    mounted = Path(SCRATCH_DIR)
    return mounted if mounted.is_dir() else Path(tempfile.gettempdir())
