# SPDX-License-Identifier: Apache-2.0
"""A toy pipeline folder, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_trainer import tiny


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "pipeline"
    tiny.make(folder)
    return folder
