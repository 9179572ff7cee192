# SPDX-License-Identifier: Apache-2.0
"""The checks that run inside each image see what they are there to see."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "images" / "checks.py"
    spec = importlib.util.spec_from_file_location("image_checks", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pins_are_read_from_a_lock(checks: ModuleType) -> None:
    lock = "Torch_NPU==2.14.0 \\\n    --hash=sha256:0\n# via torch==1\nav==19.0.2 ; python_version < '4' \\\n"
    assert checks.pins(lock) == {"torch-npu": "2.14.0", "av": "19.0.2"}


def test_differences_from_the_lock_are_named(checks: ModuleType) -> None:
    found = list(checks.wrong_versions({"a": "1", "b": "2"}, {"a": "1", "b": "3", "kinema-api": "0", "pip": "9"}))
    assert found == ["b is 3, the lock says 2", "pip is installed and in no lock"]
    assert list(checks.wrong_versions({"a": "1"}, {})) == ["a is missing, the lock says 1"]


def test_what_does_not_work_is_named(checks: ModuleType) -> None:
    assert list(checks.failed_imports(["json", "no_such_module"])) == [
        "import no_such_module: No module named 'no_such_module'"
    ]
    assert [problem.split(":")[1] for problem in checks.missing_attributes(["json:loads", "json:nothing"])] == [
        "nothing"
    ]
    assert [problem.split(":")[0] for problem in checks.failed_commands(["true", "no-such-command"])] == [
        "no-such-command"
    ]
    assert [problem.split()[0] for problem in checks.failed_commands(["false"])] == ["false"]


def test_an_empty_mount_point_is_no_leftover(checks: ModuleType, tmp_path: Path) -> None:
    assert not checks.filled(tmp_path)
    assert not checks.filled(tmp_path / "none")
    (tmp_path / "empty").touch()
    assert not checks.filled(tmp_path / "empty")
    assert checks.filled(tmp_path)
    (tmp_path / "full").write_text("x")
    assert checks.filled(tmp_path / "full")


def test_the_root_user_is_refused(checks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.os, "getuid", lambda: 0)
    assert "the image's user is root" in list(checks.unsafe())
    monkeypatch.setattr(checks.os, "getuid", lambda: 65532)
    assert "the image's user is root" not in list(checks.unsafe())


def test_a_faulty_image_fails_its_build(
    checks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text("no-such-distribution==1 \\\n")
    monkeypatch.setattr(checks, "LOCKS", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        checks.check(imports=["json"], absent=["pytest"], commands=[])
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "check: no-such-distribution is missing, the lock says 1" in said
    assert "check: pytest has no place in this image" in said
