# SPDX-License-Identifier: Apache-2.0
"""How long, and for what, a verdict is remembered."""

from __future__ import annotations

import pytest

from kinema_server.verdicts import Verdicts

pytestmark = pytest.mark.unit


def test_a_verdict_holds_for_its_token_and_path_until_it_ends() -> None:
    now = 0.0
    verdicts = Verdicts(lifetime=60, clock=lambda: now)
    verdicts.remember(token="t", path="/a", uid="u")
    assert verdicts.find(token="t", path="/a") == "u"
    assert verdicts.find(token="t", path="/b") is None
    assert verdicts.find(token="s", path="/a") is None
    now = 59.9
    assert verdicts.find(token="t", path="/a") == "u"
    now = 60.0
    assert verdicts.find(token="t", path="/a") is None
    assert len(verdicts) == 0


def test_a_verdict_can_be_taken_back() -> None:
    verdicts = Verdicts(lifetime=60)
    verdicts.remember(token="t", path="/a", uid="u")
    verdicts.forget(token="t", path="/a")
    assert verdicts.find(token="t", path="/a") is None


def test_the_least_used_verdict_makes_room() -> None:
    verdicts = Verdicts(lifetime=60, limit=2)
    verdicts.remember(token="a", path="/", uid="1")
    verdicts.remember(token="b", path="/", uid="2")
    assert verdicts.find(token="a", path="/")
    verdicts.remember(token="c", path="/", uid="3")
    assert verdicts.find(token="b", path="/") is None
    assert (verdicts.find(token="a", path="/"), verdicts.find(token="c", path="/")) == ("1", "3")
