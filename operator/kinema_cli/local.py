# SPDX-License-Identifier: Apache-2.0
"""Runs a course on this machine: stage after stage, attempt after attempt."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from kinema_api.exits import Exit, Termination
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.pipeline import SHARED_STAGES
from kinema_cli.course import Course
from kinema_cli.process import StageProcess, command, environment, retryable
from kinema_cli.records import Folder
from kinema_cli.screen import Screen, duration

POLL_SECONDS = 0.1
_BACKOFF_LIMIT = 300.0


class Stops:
    """Counts Ctrl-C and SIGTERM."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def listening(self) -> Iterator[Stops]:
        """Take the signals until the end."""
        before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run ended."""

    code: int
    stage: Stage
    end: Termination
    log: Path | None = None


@dataclass
class Runner:
    """One run of a course."""

    course: Course
    folder: Folder
    screen: Screen
    stops: Stops
    python: str
    secrets: Mapping[str, Path]
    scratch: Path | None
    lock: int
    keys: Keys | None = None
    existing: frozenset[str] = frozenset()
    _due: float = field(init=False, default=math.inf)
    """When the whole run's time is over."""

    def run(self, stages: Sequence[Stage]) -> Outcome:
        """Run stages in order, to the first that does not succeed."""
        outcome: Outcome | None = None
        limit = self.course.spec.policy.deadline_seconds
        self._due = math.inf if limit is None else time.monotonic() + limit
        for stage in stages:
            if stage in SHARED_STAGES and stage.value in self.existing:
                said = "published already"
                self.screen.ended(stage, said, well=True)
                outcome = Outcome(Exit.OK, stage, Termination(code=Exit.OK, message=said))
                continue
            outcome = self._stage(stage)
            if outcome.code != Exit.OK:
                return outcome
            if stage is Stage.CHECK:
                self.keys = Keys.stored(outcome.end.keys)
                self.existing = frozenset(outcome.end.existing)
                self.folder.write(outcome.end.keys)
        assert outcome is not None
        return outcome

    def _stage(self, stage: Stage) -> Outcome:
        """Run attempts until one succeeds, the user stops, or no other can help."""
        failures = 0
        while True:
            outcome = self._attempt(stage, again=failures)
            if outcome.code == Exit.OK or self.stops.count or time.monotonic() > self._due:
                return outcome
            failures += 1
            if failures > self.course.retries(stage) or not retryable(outcome.code):
                return outcome
            pause = min(_BACKOFF_LIMIT, self.course.spec.policy.restarts.backoff_seconds * 2.0 ** (failures - 1))
            self.screen.note(
                f"{stage}: {outcome.end.message} (exit code {outcome.code}); tries again in {duration(pause)},"
                f" {failures} of {self.course.retries(stage)}"
            )
            if not self._pause(pause):
                return outcome

    def _attempt(self, stage: Stage, *, again: int) -> Outcome:
        number = self.folder.attempt(stage)
        config, log, termination = (self.folder.file(stage, number, kind) for kind in ("json", "log", "termination"))
        made = self.course.config(stage, attempt=number, keys=self.keys)
        config.write_text(made.model_dump_json(by_alias=True, exclude_none=True, indent=1), encoding="utf-8")
        env = environment(
            self.course,
            stage,
            base=os.environ,
            termination=termination,
            secrets=self.folder.secrets(self.secrets),
            scratch=self.scratch,
        )
        self.screen.started(stage, "runs" if not again else f"runs again, after {again} failures")
        process = StageProcess.start(
            command(self.python, stage, config), env=env, log=log, termination=termination, lock=self.lock
        )
        try:
            overdue = self._follow(stage, process)
        finally:
            if process.popen.poll() is None:
                process.kill()
        end = process.end()
        if overdue is not None and end.code != Exit.OK:
            end = overdue
        well = end.code == Exit.OK
        self.screen.ended(stage, end.message if well else f"{end.message} (exit code {end.code})", well=well)
        return Outcome(end.code, stage, end, log)

    def _follow(self, stage: Stage, process: StageProcess) -> Termination | None:
        """Show the progress until the process ends, and stop it when asked; why it had to, if time ran out."""
        began, kill_at = time.monotonic(), math.inf
        overdue: Termination | None = None
        while process.popen.poll() is None:
            self._show(stage, process)
            now = time.monotonic()
            if kill_at == math.inf:
                overdue = None if self.stops.count else self._overdue(stage, began=began, now=now)
                if self.stops.count or overdue is not None:
                    grace = self.course.grace(stage)
                    process.terminate()
                    kill_at = now + grace
                    self.screen.note(
                        f"{stage}: told to save and stop, at most {duration(grace)}; Ctrl-C again kills it"
                    )
            if self.stops.count > 1 or now > kill_at:
                process.kill()
                break
            time.sleep(POLL_SECONDS)
        self._show(stage, process)
        return overdue

    def _overdue(self, stage: Stage, *, began: float, now: float) -> Termination | None:
        """What is said of a stage that ran for too long."""
        limit = self.course.of(stage).timeout_seconds
        if now > self._due:
            whole = self.course.spec.policy.deadline_seconds
            message = f"the run took longer than policy.deadlineSeconds, {whole} s; the same command goes on"
            return Termination(code=Exit.STALLED, reason="DeadlineExceeded", message=message)
        if limit is not None and now > began + limit:
            return Termination(code=Exit.STALLED, reason="Timeout", message=f"took longer than {limit} s")
        return None

    def _show(self, stage: Stage, process: StageProcess) -> None:
        for reading in process.readings():
            self.screen.moved(stage, reading)

    def _pause(self, seconds: float) -> bool:
        """Wait; False when no other attempt may begin."""
        due = min(self._due, time.monotonic() + seconds)
        while not self.stops.count and time.monotonic() < due:
            time.sleep(POLL_SECONDS)
        return not self.stops.count and time.monotonic() < self._due
