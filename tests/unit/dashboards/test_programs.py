# SPDX-License-Identifier: Apache-2.0
"""Prometheus comes from this machine, from the cache, or from apt, and what cannot be had is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from kinema_dashboards import programs
from kinema_dashboards.programs import ProgramsError

pytestmark = pytest.mark.unit

APT = """#!/bin/sh
echo "$@" >> "{log}"
case "$1" in
  download) test -e "{lists}" && : > prometheus_2.42.0_amd64.deb ;;
  update) : > "{lists}" ;;
esac
"""
DPKG = '#!/bin/sh\nmkdir -p "$3/usr/bin" "$3/usr/share/doc" && : > "$3/usr/bin/promtool"\n'


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of a fake apt whose lists are missing at first; nothing else is in the PATH but a shell's tools."""
    log, folder = tmp_path / "log", tmp_path / "path"
    folder.mkdir()
    for name, text in {"apt-get": APT, "dpkg-deb": DPKG}.items():
        (folder / name).write_text(text.format(log=log, lists=tmp_path / "lists") if name == "apt-get" else text)
        (folder / name).chmod(0o755)
    for name in ("sh", "mkdir"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return log


def test_the_package_is_fetched_once(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    found = programs.ensure(tmp_path / "cache")
    assert found.promtool == tmp_path / "cache" / "bin" / "prometheus-2.42.0" / "usr" / "bin" / "promtool"
    assert found.promtool.exists()
    assert programs.ensure(tmp_path / "cache") == found
    assert apt.read_text().splitlines() == ["download prometheus", "update --quiet", "download prometheus"]
    assert [path.name for path in (tmp_path / "cache" / "bin").iterdir()] == ["prometheus-2.42.0"]


def test_who_may_not_update_is_told_what_to_do(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ProgramsError, match="apt-get update"):
        programs.ensure(tmp_path / "cache")
    assert list((tmp_path / "cache" / "bin").iterdir()) == []


def test_without_apt_it_must_be_installed(apt: Path, tmp_path: Path) -> None:
    (tmp_path / "path" / "apt-get").unlink()
    with pytest.raises(ProgramsError, match="in the PATH"):
        programs.ensure(tmp_path / "cache")


def test_installed_programs_come_first(apt: Path, tmp_path: Path) -> None:
    for name in ("prometheus", "promtool"):
        (tmp_path / "path" / name).write_text("#!/bin/sh\n")
        (tmp_path / "path" / name).chmod(0o755)
    assert programs.ensure(tmp_path / "cache").prometheus == tmp_path / "path" / "prometheus"
    assert not apt.exists()
