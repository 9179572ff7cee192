# SPDX-License-Identifier: Apache-2.0
"""The settings file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_server.settings import ServerSettings, SettingsError, load_settings

pytestmark = pytest.mark.unit


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("")
    assert load_settings(path) == load_settings(None) == ServerSettings()


def test_fields_are_read(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("port: 9443\nprogressIntervalSeconds: 3\n")
    settings = load_settings(path)
    assert (settings.port, settings.progress_interval_seconds) == (9443, 3)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("prot: 1", "prot: Extra inputs"),
        ("port: 70000", "port: Input should be less"),
        ("verdictSeconds: 61", "verdictSeconds: Input should be less"),
        ("[", "server.yaml"),
        ("- a", "file: Input should be"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=fault):
        load_settings(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="absent"):
        load_settings(tmp_path / "absent")
