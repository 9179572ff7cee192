# SPDX-License-Identifier: Apache-2.0
"""An environment of somebody who has diffusers, and nothing of Kinema's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kinema_demo.install import ROOT

from kinema_cluster.paths import cache


def fresh_environment() -> Path:
    """A virtual environment with diffusers, transformers and what they need, nothing of Kinema's.

    Its files are links into the one cache that everything of Kinema's is installed from: torch is there once.
    """
    folder = cache() / "venv-diffusers"
    uv = str(cache() / "uv-venv" / "bin" / "uv")
    shared = {"UV_CACHE_DIR": str(cache() / "uv-cache"), "UV_LINK_MODE": "hardlink", **os.environ}
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", "3.11", str(folder)], check=True, env=shared, timeout=60)
    packages = ["diffusers", "transformers", "torch", "accelerate", "safetensors", "ftfy", "peft"]
    constraint = ["--constraint", str(ROOT / "requirements" / "dev.txt")]
    install = [uv, "pip", "install", "--quiet", "--python", str(python), *constraint, *packages]
    subprocess.run(install, check=True, env=shared, timeout=600)
    return python
