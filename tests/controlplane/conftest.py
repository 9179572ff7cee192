# SPDX-License-Identifier: Apache-2.0
"""A real control plane without nodes, shared by a test process; Kinema's definitions are installed in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinema_cluster.control_plane import ControlPlane, control_plane

ROOT = Path(__file__).parents[2]
CRDS = sorted((ROOT / "crds").glob("kinema.dev_*.yaml"))


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """The control plane; each test makes its own namespace."""
    with control_plane(name=f"test-{os.getpid()}") as running:
        for path in CRDS:
            running.kubectl("apply", "--server-side", "-f", str(path))
        running.kubectl(
            "wait", "--for=condition=Established", "--timeout=30s", *(f"--filename={path}" for path in CRDS)
        )
        yield running
