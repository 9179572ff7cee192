# SPDX-License-Identifier: Apache-2.0
"""Processes that run layouts."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from kinema_trainer.models.wan import ADAPTER

from tests.parity import worker
from tests.parity.cases import CONFIGS, Case


class BrokenError(AssertionError):
    """A process failed, or did not answer in time."""


class Processes:
    """Up to eight processes that are told what to run; each call has new ones.

    They are forks of one process that has done the imports. A process that lived on would keep the threads of every
    group that it was ever in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.parity.worker"])
        self._stores = itertools.count()
        self._references: dict[str, Path] = {}

    def call(self, world: int, function: Callable[..., Any], *, seconds: float = 240, **arguments: Any) -> list[Any]:
        """What each of `world` processes returns, in a process group of their own.

        Raises:
            BrokenError: one of them failed.
        """
        store = self.folder / f"store-{next(self._stores)}"
        running: list[ForkServerProcess] = []
        pipes: list[Connection] = []
        try:
            for rank in range(world):
                ours, theirs = self._context.Pipe()
                arrangement = (theirs, function, arguments)
                running.append(self._context.Process(target=worker.serve, args=(*arrangement, store, rank, world)))
                pipes.append(ours)
                running[-1].start()
                theirs.close()
            return _answers(pipes, time.monotonic() + seconds)
        finally:
            for process, pipe in zip(running, pipes, strict=True):
                pipe.close()
                process.kill()
                process.join()

    def run(self, case: Case, *, seconds: float = 240) -> list[worker.Outcome]:
        """Run a case, and what it is compared with where nothing did before."""
        name = repr(case.alone)
        if name not in self._references:
            path = self.folder / f"reference-{len(self._references)}.pt"
            self.call(1, worker.run, case=case.alone, folder=self.folder, reference=path)
            self._references[name] = path
        return self.call(
            case.world, worker.run, case=case, folder=self.folder, reference=self._references[name], seconds=seconds
        )


def _answers(pipes: list[Connection], deadline: float) -> list[Any]:
    answers: dict[int, Any] = {}
    while len(answers) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in answers]
        ready = wait(waiting, deadline - time.monotonic())
        if not ready:
            raise BrokenError("no answer in time")
        for one in ready:
            rank = pipes.index(cast(Connection, one))
            try:
                answers[rank] = pipes[rank].recv()
            except EOFError:
                raise BrokenError("the process is gone") from None
            if isinstance(answers[rank], RuntimeError):
                raise BrokenError(str(answers[rank]))
    return [answers[rank] for rank in range(len(pipes))]


def write_weights(folder: Path, task: str) -> None:
    """Random weights without any zero, as every process loads them."""
    torch.manual_seed(0)
    model = ADAPTER.build(CONFIGS[task])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
            elif ".norm" in name:
                parameter.normal_(mean=1.0, std=0.1)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save(state, storage_writer=FileSystemWriter(folder / f"weights-{task}"), no_dist=True)
