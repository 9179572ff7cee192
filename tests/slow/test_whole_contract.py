# SPDX-License-Identifier: Apache-2.0
"""Schemathesis over the whole description of the server, 200 examples an operation."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis

from tests.unit.server.test_contract import AUTHORIZATION, described

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

schema = described(examples=200)


@schema.parametrize()  # type: ignore[untyped-decorator]
def test_the_server_does_as_it_says_in_every_case(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(headers=AUTHORIZATION)
