# SPDX-License-Identifier: Apache-2.0
"""Work side by side: threads for waiting on storage, processes for decoding."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_CGROUP = Path("/sys/fs/cgroup/cpu.max")
_THREADS = 32
_WINDOW = 4096
_PR_SET_PDEATHSIG = 1


def cpus(cgroup: Path = _CGROUP) -> int:
    """Processors that this container may use; a node's count would start far too many processes."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = cgroup.read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in order."""
    results: list[R] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        remaining = iter(items)
        while window := list(islice(remaining, _WINDOW)):
            results += pool.map(work, window)
    return results


class Crashed:
    """Stands for the result of an item whose process died."""


CRASHED = Crashed()


def processes(work: Callable[[T], R], items: Sequence[T], *, workers: int) -> Iterator[tuple[int, R | Crashed]]:
    """`work` of every item with its index, as they finish.

    An item that kills its process (a decoder may crash on a damaged file) gives `CRASHED` and spoils no other: those
    that ran beside it are run again, each in a process of its own.
    """
    waiting = deque(range(len(items)))
    while waiting:
        suspects: list[int] = []
        with _pool(workers) as pool:
            try:
                yield from _drain(pool, work, items, waiting, suspects, ahead=2 * workers)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        for index in suspects:
            with _pool(1) as pool:
                try:
                    yield index, pool.submit(work, items[index]).result()
                except BrokenProcessPool:
                    yield index, CRASHED


def _drain(
    pool: ProcessPoolExecutor,
    work: Callable[[T], R],
    items: Sequence[T],
    waiting: deque[int],
    suspects: list[int],
    *,
    ahead: int,
) -> Iterator[tuple[int, R]]:
    """Results until all is done, or until the pool breaks; then `suspects` holds what was under way."""
    running: dict[Future[R], int] = {}
    while (waiting or running) and not suspects:
        try:
            while waiting and len(running) < ahead:
                running[pool.submit(work, items[waiting[0]])] = waiting[0]
                waiting.popleft()
        except BrokenProcessPool:
            # What is under way fails as well, below.
            pass
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            index = running.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                suspects.append(index)
            else:
                yield index, result
    suspects += running.values()


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: a fork of a process with threads may hold a lock for ever.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent)


def _follow_parent() -> None:
    """Die with the parent, even when it is killed, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
