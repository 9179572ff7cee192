# SPDX-License-Identifier: Apache-2.0
"""Detached processes that are known by pid and start time, so that a reused pid is never taken for ours."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was started by the cluster."""

    name: str
    pid: int
    started: int
    """Clock ticks after boot: field 22 of /proc/PID/stat."""
    argv: tuple[str, ...]


def parse_stat(text: str) -> tuple[str, int]:
    """State letter and start time out of /proc/PID/stat; the command in it may hold spaces and brackets."""
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])


def alive(process: Process) -> bool:
    """Whether this very process still runs; a zombie does not."""
    _reap(process.pid)
    try:
        state, started = parse_stat(Path(f"/proc/{process.pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX" and started == process.started


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What components and kubectl see: the system's own programs, and no proxy between the parts of a cluster."""
    dropped = {"KUBECONFIG", "http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    kept = {key: value for key, value in inherited.items() if key not in dropped and key.lower() not in dropped}
    return kept | {"PATH": SYSTEM_PATH}


def start(name: str, argv: Sequence[str], *, log: Path) -> Process:
    """Start `argv` detached from this terminal, its output appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment(os.environ),
            start_new_session=True,
        )
    # The cluster outlives this program: nobody waits for the child here, and Popen must not warn of it.
    child.returncode = 0
    try:
        _, started = parse_stat(Path(f"/proc/{child.pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        started = -1
    return Process(name=name, pid=child.pid, started=started, argv=tuple(argv))


def stop(processes: Iterable[Process], *, grace: float) -> None:
    """End these processes: SIGTERM, `grace` seconds, SIGKILL. Returns when all are gone."""
    handles = {process: handle for process in processes if (handle := _open(process)) is not None}
    try:
        _signal_and_wait(handles, signal.SIGTERM, grace)
        _signal_and_wait(handles, signal.SIGKILL, 10)
    finally:
        for process, handle in handles.items():
            os.close(handle)
            _reap(process.pid)


def kill_pids(pids: Iterable[int]) -> None:
    """SIGKILL to processes that were found by what they hold of the cluster, and wait for their end."""
    found = []
    for pid in pids:
        try:
            _, started = parse_stat(Path(f"/proc/{pid}/stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append(Process(name=str(pid), pid=pid, started=started, argv=()))
    stop(found, grace=0)


def _open(process: Process) -> int | None:
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Looked at after the pidfd is open: from here on the pid cannot be another process.
    if not alive(process):
        os.close(handle)
        return None
    return handle


def _signal_and_wait(handles: Mapping[Process, int], number: signal.Signals, seconds: float) -> None:
    waiting = {handle: process for process, handle in handles.items() if alive(process)}
    poll = select.poll()
    if number == signal.SIGTERM and seconds <= 0:
        return
    for handle in waiting:
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            continue
        poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + seconds
    while waiting and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            _reap(waiting.pop(handle).pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
