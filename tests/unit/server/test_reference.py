# SPDX-License-Identifier: Apache-2.0
"""docs/rest.md is what the server says of itself.

Write it anew with `python -m tests.unit.server.test_reference`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_server.app import create_app
from kinema_server.reference import page
from kinema_server.settings import ServerSettings

from tests.unit.server.test_contract import connect

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[3] / "docs" / "rest.md"


def described() -> str:
    return page(create_app(ServerSettings(), connect).openapi())


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == described(), "python -m tests.unit.server.test_reference writes it"


if __name__ == "__main__":
    PAGE.write_text(described(), encoding="utf-8")
