# SPDX-License-Identifier: Apache-2.0
"""Where things lie: the repository, and what the builds keep outside it."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cache() -> Path:
    return Path(os.environ.get("KINEMA_CACHE") or Path.home() / ".cache" / "kinema")


def layout() -> Path:
    """One OCI folder with every image, uncompressed: what `tools/cluster load` reads."""
    return cache() / "images" / "oci"


def record() -> Path:
    """What was built last: a JSON object, image names to references and digests."""
    return cache() / "images.json"
