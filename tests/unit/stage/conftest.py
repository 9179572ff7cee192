# SPDX-License-Identifier: Apache-2.0
"""A bucket over HTTP for the stages of a test, with a Secret to reach it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kinema_api.names import ENV_SCRATCH, ENV_SECRETS
from kinema_stage import s3

from tests.s3.bucket import ObjectStore, object_store, secret


@pytest.fixture(scope="session")
def server() -> Iterator[ObjectStore]:
    """A store over HTTP."""
    with object_store() as running:
        yield running


@pytest.fixture
def store(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """It, empty, with the Secret and the scratch folder of a pod."""
    monkeypatch.setenv(ENV_SECRETS, str(tmp_path / "secrets"))
    monkeypatch.setenv(ENV_SCRATCH, str(tmp_path / "scratch"))
    secret(tmp_path / "secrets")
    s3.client.cache_clear()
    yield server
    server.empty()
