# SPDX-License-Identifier: Apache-2.0
"""A fake API server for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.kube.fake import FakeKube, fake_kube


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def fake() -> AsyncIterator[FakeKube]:
    async with fake_kube() as fake:
        yield fake
