# SPDX-License-Identifier: Apache-2.0
"""The command line in front of a fake API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinema_cli.__main__ import main

from tests.unit.cli.fake import FakeApi, kubeconfig, serving


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Kinema = Callable[..., Result]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "KUBERNETES_SERVICE_HOST", "COLUMNS", "KINEMA_SERVER"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving() as fake:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, fake.url)))
        yield fake


@pytest.fixture
def kinema(capsys: pytest.CaptureFixture[str]) -> Kinema:
    """Run a command in this process."""

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return run
