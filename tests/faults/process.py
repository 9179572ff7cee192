# SPDX-License-Identifier: Apache-2.0
"""The operator as a process that starts at once: a fork of one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from kinema_operator.__main__ import main

from tests.controlplane.process import Operator

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["kinema_operator.__main__"])


class Fork:
    """The part of `subprocess.Popen` that tests use."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process: BaseProcess = _CONTEXT.Process(target=_run, args=(folder, environment), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("kinema-operator", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


class Quick(Operator):
    """An operator for tests that kill it again and again."""

    def spawn(self, environment: dict[str, str]) -> Fork:
        return Fork(self.folder, environment)


def _run(folder: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(folder / "operator.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["kinema-operator", "--config", str(folder / "operator.yaml")]
    main()
