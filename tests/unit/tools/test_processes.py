# SPDX-License-Identifier: Apache-2.0
"""Processes are known by pid and start time, and nothing else is ever killed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from kinema_cluster import processes
from kinema_cluster.api import wait_for
from kinema_cluster.processes import alive, environment, parse_stat, start, stop

STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
)


def test_stat_of_a_command_with_brackets_and_blanks() -> None:
    assert parse_stat("77 (a) b) (c) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0") == ("S", 4711)


def test_a_process_lives_until_it_is_stopped(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "sleep.log"
    process = start("sleep", ["sleep", "1000"], log=log)
    assert alive(process)
    assert os.getsid(process.pid) == process.pid
    stop([process], grace=5)
    assert not alive(process)
    assert log.exists()


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start("stubborn", [sys.executable, "-c", STUBBORN], log=log)
    wait_for("it was not deaf", lambda: log.read_text() == "deaf\n", seconds=10)
    stop([process], grace=0.2)
    assert not alive(process)


def test_a_reused_pid_is_not_ours() -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            _, started = parse_stat(Path(f"/proc/{other.pid}/stat").read_text())
            ours = processes.Process(name="old", pid=other.pid, started=started - 1, argv=("sleep",))
            assert not alive(ours)
            stop([ours], grace=0)
            assert other.poll() is None
            assert alive(dataclasses.replace(ours, started=started))
        finally:
            other.kill()


def test_one_that_ended_by_itself_is_dead_though_nobody_waited_for_it(tmp_path: Path) -> None:
    process = start("true", ["true"], log=tmp_path / "log")
    wait_for("it lived", lambda: not alive(process), seconds=10)


def test_components_see_no_proxy() -> None:
    seen = environment({"HTTPS_PROXY": "http://proxy", "no_proxy": "x", "KUBECONFIG": "/mine", "HOME": "/root"})
    assert seen == {"HOME": "/root", "PATH": processes.SYSTEM_PATH}
