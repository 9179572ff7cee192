# SPDX-License-Identifier: Apache-2.0
"""What happens to a job, as it happens: its status by a watch, every training step by the log of its first pod."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kinema_api.names import JOB_PLURAL, Stage
from kinema_api.status import StageState
from kinema_demo.errors import DemoError
from kinema_demo.job import JobView, read
from kinema_demo.kubectl import Kubectl

KIND = f"{JOB_PLURAL}.kinema.dev"
RETRY = 1.0
"""Seconds before a broken watch or log is opened again."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step."""

    step: int
    total: int | None
    loss: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The job was deleted."""


News = JobView | Step | Gone


@dataclass(slots=True)
class Follower:
    """Two background threads that put news into a queue; `news` takes them out."""

    kubectl: Kubectl
    name: str
    _queue: queue.SimpleQueue[News | Exception] = field(default_factory=queue.SimpleQueue)
    _stop: threading.Event = field(default_factory=threading.Event)
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _logged: str = ""

    def __enter__(self) -> Follower:
        self._start(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for process in self._processes:
            process.terminate()
            process.wait()

    def news(self, *, patience: float) -> Iterator[News | None]:
        """News until the job has ended or is gone; None after `patience` seconds of silence."""
        while True:
            try:
                found = self._queue.get(timeout=patience)
            except queue.Empty:
                yield None
                continue
            if isinstance(found, Exception):
                raise found
            yield found
            if isinstance(found, Gone) or (isinstance(found, JobView) and found.ended):
                return

    def _start(self, work: Callable[[], None]) -> None:
        """Run something in the background; what goes wrong there is raised by `news`."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                self._queue.put(error)

        threading.Thread(target=run, daemon=True).start()

    def _watch(self) -> None:
        while not self._stop.is_set():
            with self._open("get", KIND, self.name, "-w", "-o", "json", "--output-watch-events") as process:
                for line in process.stdout or ():
                    if not line.endswith("\n"):
                        break  # kubectl was cut short
                    event = json.loads(line)
                    if event["type"] == "DELETED":
                        self._queue.put(Gone())
                        return
                    if event["object"]["kind"] == "VideoTrainingJob":
                        self._see(read(event["object"]))
            # The watch ends now and then by itself; if the job went away meanwhile, no event will say so.
            if not self._stop.is_set() and self.kubectl.attempt("get", KIND, self.name).returncode:
                self._check_gone()
            self._stop.wait(RETRY)

    def _check_gone(self) -> None:
        try:
            if self.kubectl.get(KIND, self.name) is None:
                self._queue.put(Gone())
                self._stop.set()
        except DemoError:
            return  # the API server does not answer: the watch is opened again

    def _see(self, job: JobView) -> None:
        self._queue.put(job)
        train = job.stage(Stage.TRAIN.value)
        if train and train.state == StageState.RUNNING.value and train.child and train.child != self._logged:
            self._logged = train.child
            self._start(lambda: self._log(train.child))

    def _log(self, child: str) -> None:
        """Follow the log of an attempt's first pod; from its beginning, and again until it can be opened."""
        while not self._stop.is_set() and self._logged == child:
            seen = False
            with self._open("logs", "-f", f"{child}-master-0") as process:
                for line in process.stdout or ():
                    seen = True
                    if step := read_step(line):
                        self._queue.put(step)
            if seen:
                return
            self._stop.wait(RETRY)

    def _open(self, *arguments: str) -> subprocess.Popen[str]:
        process = self.kubectl.popen(*arguments)
        self._processes.append(process)
        if self._stop.is_set():
            process.terminate()
        return process


def read_step(line: str) -> Step | None:
    """The training step that a log line tells of; None for any other line."""
    try:
        record = json.loads(line)
        return Step(step=int(record["step"]), total=_int(record.get("total_steps")), loss=float(record["loss"]))
    except (ValueError, TypeError, KeyError):
        return None


def _int(value: object) -> int | None:
    return int(value) if isinstance(value, int | float | str) else None
