# SPDX-License-Identifier: Apache-2.0
"""Another Debian release by way of this machine's own mirrors."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_images import apt

DEB822 = """\
Types: deb deb-src
# A comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://off.example/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://mirror.example/debian bookworm main contrib  # ours
deb-src http://mirror.example/debian bookworm main
deb http://other.example/tools stable main
"""
OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12"\nVERSION_CODENAME=bookworm\nID=debian\n'


def etc(folder: Path, *, os_release: str = OS_RELEASE, files: dict[str, str] | None = None) -> Path:
    (folder / "os-release").write_text(os_release)
    for name, text in (files or {}).items():
        path = folder / "apt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_sources_in_paragraphs(tmp_path: Path) -> None:
    lines = apt.sources_for("trixie", etc=etc(tmp_path, files={"sources.list.d/debian.sources": DEB822}))
    assert lines == (
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/debian-security trixie-security main",
    )


def test_sources_in_lines(tmp_path: Path) -> None:
    lines = apt.sources_for("trixie", etc=etc(tmp_path, files={"sources.list": ONE_LINE}))
    assert lines == ("deb http://mirror.example/debian trixie main",)


@pytest.mark.parametrize("os_release", ["ID=ubuntu\nVERSION_CODENAME=noble\n", "ID=debian\n"])
def test_a_machine_that_is_no_debian_release_has_none(tmp_path: Path, os_release: str) -> None:
    files = {"sources.list": ONE_LINE}
    assert apt.sources_for("trixie", etc=etc(tmp_path, os_release=os_release, files=files)) == ()
