# SPDX-License-Identifier: Apache-2.0
"""Installing Debian packages without starting their services."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kinema_cluster import packages
from kinema_cluster.errors import ClusterError


def test_only_what_is_missing_is_named_once() -> None:
    needed = {"sh": "dash", "no-such-command": "wanted", "/no/such/file": "wanted"}
    assert packages.missing(needed) == ["wanted"]


def test_a_user_without_rights_is_told_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="apt-get install --no-install-recommends wanted"):
        packages.ensure({"no-such-command": "wanted"}, progress=lambda line: None)


@pytest.mark.parametrize("existing", [None, "#!/bin/sh\nexit 0\n"])
def test_services_are_refused_while_installing_and_the_policy_is_as_before(
    existing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy-rc.d"
    if existing:
        policy.write_text(existing)
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(packages, "POLICY", policy)
    monkeypatch.setattr(packages, "_apt", lambda *arguments: seen.append((arguments[0], policy.read_text())))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: "/usr/bin/apt-get" if name == "apt-get" else None)
    packages.ensure({"no-such-command": "wanted"}, progress=lambda line: None)
    in_force = existing or packages.REFUSE_SERVICES
    assert seen == [("update", in_force), ("install", in_force)]
    assert (policy.read_text() if policy.exists() else None) == existing
